"""Teaches the decoder to say what is stated, exactly, and to say so where nothing is stated.

    frozen image tower -> patch tokens of phantoms and training films, once, in float16 memory
    conversations.py   -> questions and true answers, fresh in every step
    loss               -> the answers' tokens alone

The run is a pure function of recipe and checkpoint: each step draws from its own random stream, so a resumed run writes
the same conversations as one that never stopped. Progress goes to `log` and
to tensorboard in the work folder.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from foundation.decoder import Decoder
from foundation.device import autocast_bf16, choose_device
from training import resume
from training.pretraining.decoder.exam import examine
from training.pretraining.decoder.film_bank import FilmBank, film_bank, phantom_bank
from training.pretraining.decoder.lessons import answer_logits, write_lesson
from training.pretraining.decoder.recipe import DecoderRecipe
from training.pretraining.decoder.start import new_decoder, take_language
from training.pretraining.text.corpus import training_rows

if TYPE_CHECKING:
    from foundation.backbone import Backbone

Log = Callable[[str], None]
_HELD_OUT_SEED = 9_000_000  # phantoms from here on are never trained on


def train_decoder(
    folder: Path,
    recipe: DecoderRecipe,
    *,
    manifest: Path | None = None,
    work: Path | None = None,
    start: Path | None = None,
    max_steps: int | None = None,
    log: Log = print,
    device: str = "cpu",
) -> Path:
    """Teach a decoder for the checkpoint in `folder` and save it there (`decoder/`, projector); returns the folder.

    `manifest` adds real training films and people's questions; without it the lessons are phantoms only. `work` keeps
    the state to resume from. `start` is a folder whose decoder, taught with another image tower, lends its language
    model; the projector begins anew.
    """
    from foundation.checkpoint import open_checkpoint

    work = work or folder / ".instruct"
    work.mkdir(parents=True, exist_ok=True)
    backbone = open_checkpoint(str(folder), device=choose_device(device)).backbone
    bank = _bank(backbone, recipe, manifest, work, log)
    tested = phantom_bank(backbone, recipe.held_out, _HELD_OUT_SEED)
    decoder = new_decoder(backbone, recipe, folder / "tokenizer.json", bank)
    if start is not None:
        take_language(decoder, start)
    teacher = Teacher(decoder.to(backbone.device), recipe, bank, people_questions(manifest), work, log)
    teacher.train(max_steps or recipe.steps)
    decoder.to("cpu")
    decoder.save(folder)
    report = examine(decoder, tested, recipe)
    (work / "decoder_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    log(f"decoder: {report}")
    return folder


class Teacher:
    """Decoder, optimiser and their place in the course."""

    def __init__(
        self, decoder: Decoder, recipe: DecoderRecipe, bank: FilmBank, questions: Sequence[str], work: Path, log: Log
    ) -> None:
        self.decoder, self.recipe, self.bank, self.questions = decoder, recipe, bank, questions
        self.work, self.state, self.log = work, work / "decoder_state", log
        self._modules = {"decoder": decoder}
        matrices = [p for p in decoder.parameters() if p.ndim > 1]
        vectors = [p for p in decoder.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.step = resume.resume_course(self.state, self._course(), self._modules, self.optimiser)
        if self.step:
            self.log(f"decoder: going on from step {self.step}")

    def train(self, until: int) -> None:
        """Steps up to `until`; the learning rate follows the whole recipe."""
        began, first = time.monotonic(), self.step
        board = _tensorboard(self.work)
        self.decoder.train()
        while self.step < until:
            loss = self._step()
            self.step += 1
            if board:
                board.add_scalar("decoder/loss", loss, self.step)
            if self.step % 25 == 0 or self.step == until:
                pace = (time.monotonic() - began) / (self.step - first)
                left = pace * (until - self.step)
                self.log(f"decoder step {self.step}/{self.recipe.steps} loss {loss:.4f} ({left:.0f} s left)")
            if self.step % 100 == 0 or self.step == until:
                resume.save_course(self.state, self._course(), self.step, self._modules, self.optimiser)
        self.decoder.eval()
        if board:
            board.close()

    def _step(self) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        lesson = write_lesson(self.decoder, self.bank, self.recipe, self.step, self.questions)
        with autocast_bf16(self.decoder.device):
            logits, targets = answer_logits(self.decoder, lesson)
        loss = F.cross_entropy(logits.float(), targets)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimiser.step()
        return float(loss.detach())

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.recipe.steps)))
        return self.recipe.learning_rate * warm * (0.03 + 0.97 * fall)

    def _course(self) -> dict[str, Any]:
        """What a resumed course must share with the one that was stopped."""
        return {**asdict(self.recipe), "film tokens": list(self.bank.tokens.shape), "questions": len(self.questions)}


def _bank(backbone: Backbone, recipe: DecoderRecipe, manifest: Path | None, work: Path, log: Log) -> FilmBank:
    began = time.monotonic()
    banks = [phantom_bank(backbone, recipe.phantoms, recipe.seed * 100_000)]
    if manifest is not None and recipe.films:
        banks.append(film_bank(backbone, manifest, recipe.films, recipe.seed))
    bank = FilmBank(
        torch.cat([part.tokens for part in banks]),
        tuple(item for part in banks for item in part.labels),
    )
    log(f"decoder: patch tokens {tuple(bank.tokens.shape)} in {time.monotonic() - began:.0f} s")
    return bank


def people_questions(manifest: Path | None) -> tuple[str, ...]:
    """What clinicians asked of chest films (vqa_rad, training rows): phrasings only, their answers are not used."""
    if manifest is None:
        return ()
    asked = {
        str(item["question"]).strip()
        for row in training_rows(manifest)
        if row["source"] == "vqa_rad"
        for item in cast(list[dict[str, str]], row.get("qa") or [])
    }
    return tuple(sorted(text for text in asked if len(text) < 90))


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
