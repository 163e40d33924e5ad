"""`vesalius data check`: is a manifest fit to train on? Counts, and every problem with its row and the remedy."""

from __future__ import annotations

import argparse
from pathlib import Path

from app.show import Show
from foundation.errors import InvalidRequest


def add_data_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("check",))
    command.add_argument("--manifest", type=Path, required=True)
    command.add_argument("--where", action="append", default=[], metavar="FIELD=VALUE")
    command.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="a column by another name")


def run_data(chosen: argparse.Namespace, show: Show) -> None:
    """Shows the report; leaves with code 2 where the manifest cannot be trained on."""
    from training.manifests.check import check_manifest

    columns = {}
    for pair in chosen.column:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise InvalidRequest(f"--column {pair!r} is not of the form OURS=THEIRS.", param="column")
        columns[ours] = theirs
    report = check_manifest(chosen.manifest, chosen.where or None, columns)
    show(report.as_json(), report.as_text())
    if report.problems:
        raise SystemExit(2)
