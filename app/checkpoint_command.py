"""`vesalius checkpoint` and `vesalius export`: what a checkpoint is, and the chat model of one for plain transformers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from app.show import Show


def add_checkpoint_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("inspect",))
    command.add_argument("where")


def add_export_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("--checkpoint", type=Path)
    command.add_argument("--out", type=Path, required=True)


def run_checkpoint(chosen: argparse.Namespace, show: Show) -> None:
    from foundation.checkpoint import open_checkpoint

    passport = open_checkpoint(chosen.where).passport
    show(json.loads(passport.to_json()), passport.to_json())


def run_export(chosen: argparse.Namespace, show: Show) -> None:
    from foundation.checkpoint import open_checkpoint
    from foundation.export import export_llava

    folder = export_llava(chosen.checkpoint or open_checkpoint("bundled").folder, chosen.out)
    show({"out": str(folder)}, f"Written: {folder}")
