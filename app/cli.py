"""The `vesalius` command: one line a person types, one answer, as text or (`--json`) as one JSON document.

Here is the list of commands; what each takes and does stands in its own file. Nothing heavy is imported before a command
needs it. A VesaliusError becomes one sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from app.adapters_command import add_adapters_command, run_adapters
from app.audit_command import add_audit_command, run_audit
from app.checkpoint_command import add_checkpoint_command, add_export_command, run_checkpoint, run_export
from app.data_command import add_data_command, run_data
from app.deidentify_command import add_deidentify_command, run_deidentify
from app.film_commands import add_film_options, run_ask, run_predict, run_zero_shot
from app.keys_command import add_keys_command, run_keys
from app.serve_command import add_serve_options, run_serve, run_up
from app.show import Show
from app.training_commands import (
    add_evaluate_command,
    add_finetune_command,
    add_pretrain_command,
    run_evaluate,
    run_finetune,
    run_pretrain,
)
from app.words import RESEARCH_USE
from foundation.errors import VesaliusError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    chosen = build_parser().parse_args(arguments)
    as_json = getattr(chosen, "json", False)
    try:
        chosen.run(chosen, _shower(as_json))
    except VesaliusError as error:
        if as_json:
            print(json.dumps({"error": {"code": error.code, "message": error.message, "param": error.param}}))
        print(f"vesalius: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _shower(as_json: bool) -> Show:
    def show(value: Any, text: str) -> None:
        print(json.dumps(value, ensure_ascii=False) if as_json else text)

    return show


def build_parser() -> argparse.ArgumentParser:
    """The command line as it stands; `--help` of it is the contract."""
    parser = argparse.ArgumentParser(prog="vesalius", description=f"Ask medical images. {RESEARCH_USE}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace, Show], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="answer with one JSON document")
        return command

    for name, run, text in (
        ("serve", run_serve, "serve the API"),
        ("up", run_up, "serve the API and the page, and say where to look"),
    ):
        command = add(name, run, text)
        add_serve_options(command, has_page=name == "up")

    for name, run, text in (
        ("ask", run_ask, "ask a question about one film"),
        ("zero-shot", run_zero_shot, "score films against labels of your own"),
        ("predict", run_predict, "run films through an adapter of any task"),
    ):
        command = add(name, run, text)
        add_film_options(command, name)

    add_pretrain_command(add("pretrain", run_pretrain, "train a backbone as a recipe says, or go on with it"))
    add_finetune_command(add("finetune", run_finetune, "train an adapter from a manifest"))
    add_evaluate_command(add("evaluate", run_evaluate, "measure an adapter, zero-shot or chat"))
    add_adapters_command(add("adapters", run_adapters, "list, show, verify, add, remove or compact adapters"))
    add_checkpoint_command(add("checkpoint", run_checkpoint, "say what a checkpoint is"))
    add_export_command(add("export", run_export, "write the chat model as a plain transformers folder"))
    add_data_command(add("data", run_data, "check a manifest before anything is trained on it"))
    add_keys_command(add("keys", run_keys, "make, list or revoke API keys"))
    add_audit_command(add("audit", run_audit, "check that the audit log is whole"))
    add_deidentify_command(add("deidentify", run_deidentify, "write DICOM films without their patients"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
