"""`vesalius pretrain`, `finetune` and `evaluate`: from a recipe or a manifest to weights, an adapter or a report."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from app.show import Show


def add_pretrain_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe")
    command.add_argument("--out", type=Path)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_finetune_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("task")
    command.add_argument("--manifest", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--recipe", help="a name or a TOML file; the task's own recipe where left out")
    command.add_argument("--checkpoint", default="bundled")
    command.add_argument("--resume", action="store_true")


def add_evaluate_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("subject", metavar="ADAPTER|zero-shot|chat")
    command.add_argument("--manifest", type=Path, required=True)
    command.add_argument("--split", default="test")
    command.add_argument("--where", action="append", default=[])
    command.add_argument("--report", type=Path, required=True)
    command.add_argument("--checkpoint", default="bundled")
    command.add_argument("--baseline", action="append", default=[], dest="baselines", choices=("hog", "cnn", "unet"))
    command.add_argument("--phantoms", type=int, help="how many synthetic films; 0 for none")


def run_pretrain(chosen: argparse.Namespace, show: Show) -> None:
    from training.pretraining.bundle import pretrain

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = pretrain(chosen.recipe, chosen.out, log, chosen.device)
    show({"checkpoint": str(folder)}, f"The checkpoint lies in {folder}; serve it with --checkpoint {folder}.")


def run_finetune(chosen: argparse.Namespace, show: Show) -> None:
    from training.finetuning.finetune import finetune

    done = finetune(
        chosen.task, chosen.manifest, chosen.out, chosen.recipe, chosen.checkpoint, resume=chosen.resume, is_quiet=chosen.json
    )
    figures = ", ".join(f"{split} {value:.3f}" for split, value in done.scores.items())
    show(
        {"adapter": str(done.adapter), done.measure: dict(done.scores)},
        f"The adapter lies in {done.adapter}. {done.measure.capitalize()}: {figures}.",
    )


def run_evaluate(chosen: argparse.Namespace, show: Show) -> None:
    from adapters.store import AdapterStore
    from app.chat_opener import open_chat
    from training.evaluating.evaluate import evaluate
    from training.evaluating.job import Options

    options = Options(baselines=tuple(chosen.baselines))
    if chosen.phantoms is not None:
        options = replace(options, phantoms=chosen.phantoms, chat_phantoms=chosen.phantoms)
    evaluate(
        chosen.subject,
        chosen.manifest,
        chosen.split,
        chosen.where or None,
        chosen.report,
        chosen.checkpoint,
        options,
        store=AdapterStore.default(),
        chat=open_chat,
        command=" ".join(["vesalius", *sys.argv[1:]]),
        log=lambda line: print(line, file=sys.stderr),
    )
    show({"report": str(chosen.report)}, f"Report: {chosen.report / 'report.md'}")
