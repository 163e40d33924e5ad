"""Training of the refiner, once the words are learnt: everything else is frozen, so that words alone answer as before.

    film --frozen--> x, words' logits --spoil--> start --click--> refiner --settle--> click --> refiner ...
                                                            loss                            loss

Each round's click falls where the answer of the round before is wrong, inside or outside, and each round's answer starts
from that one, as when it is served (`adapters/tasks/refining.py`). The loss counts most around the newest click.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.tasks.prompting import Prompt, draw
from adapters.tasks.refining import Grid, Words, answer_marks, near, settle
from adapters.tasks.segmentation import SegmentationOutput
from training.finetuning.segmentation.reader import Mask, first_click, next_click, random_box, random_click, spoil
from training.finetuning.segmentation.trainee import (
    AdaptedSegmenter,
    SegmentationTrainee,
    dice_and_entropy,
    halved,
    overlap,
)
from training.finetuning.trunk_cache import to_pixels

BOXED = 0.2  # share of what is clicked on within a box
AT_CLICK = 8.0  # how much more a pixel counts at the newest click
CHECKED = 3  # clicks in validation


@dataclass
class _Asked:
    """One class of one film while it is clicked on."""

    row: int
    truth: Mask
    now: Grid
    random: np.random.Generator
    marks: Prompt = field(default_factory=Prompt)


class ClickTrainee:
    """Films as `SegmentationTrainee` draws them; validates on `val` by the mean Dice over the first clicks.

    rounds: clicks on each class of each film. parts: how many connected parts a class can have; 0: any number.
    """

    def __init__(self, films: SegmentationTrainee, rounds: int, parts: int) -> None:
        self.films, self.rounds, self.parts = films, rounds, parts

    def plan(self, epoch: int) -> Sequence[Sequence[tuple[int, int]]]:
        return self.films.plan(epoch)

    def load(self, draws: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Augmented films with target and known, and the draws' `seeds` (B,)."""
        batch = self.films.shown(draws)
        seeds = torch.tensor([seed for _, seed in draws])
        return batch | {"pixels": to_pixels(batch["pixels"], self.films.contract), "seeds": seeds}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, float]]:
        with torch.no_grad():
            output: SegmentationOutput = model(batch)
        asked = _ask(output, batch)
        if not asked:
            zero = sum(p.sum() for p in model.parameters() if p.requires_grad) * 0.0
            return torch.as_tensor(zero), {}
        x = output.x.detach().float()[[one.row for one in asked]]
        target = torch.from_numpy(np.stack([one.truth for one in asked])).float().to(x.device)
        losses = [self._round(model, x, target, asked, is_first=n == 0) for n in range(self.rounds)]
        return torch.stack(losses).mean(), {"click_loss": float(losses[0].detach()), "last_loss": float(losses[-1].detach())}

    def _round(self, model: nn.Module, x: Tensor, target: Tensor, asked: Sequence[_Asked], *, is_first: bool) -> Tensor:
        for one in asked:
            if is_first and one.random.random() < BOXED:
                one.marks = Prompt(boxes=(random_box(one.truth, one.random),))
            click = random_click(one.now > 0, one.truth, one.random, is_first=is_first)
            one.marks = Prompt((*one.marks.points, click), one.marks.boxes)
        side = x.shape[-1]
        now, newest = (
            torch.from_numpy(np.stack(grids)).to(x.device)
            for grids in ([one.now for one in asked], [near(one.marks.points[-1], side) for one in asked])
        )
        hints = torch.from_numpy(np.stack([draw(one.marks, side) for one in asked])).to(x.device)
        answer: Tensor = model({"x": x, "logits": now, "hints": hints, "newest": newest})
        for one, drawn in zip(asked, answer.detach().cpu().numpy(), strict=True):
            one.now = settle(one.now, drawn, one.marks.points[-1])
        weights = 1.0 + AT_CLICK * newest.abs()
        entropy = F.binary_cross_entropy_with_logits(answer, target, weights)
        return dice_and_entropy()(answer[:, None], target[:, None]) + entropy

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """`dice` over 1 to CHECKED clicks, and after each; `words` before them. At the model's size."""
        assert isinstance(model, AdaptedSegmenter)
        val, device = self.films.films["val"], next(model.parameters()).device
        scores: list[list[float]] = []
        for place in range(len(val.rows)):
            pixels = to_pixels(np.asarray(val.pixels[place : place + 1]), self.films.contract).to(device)
            output: SegmentationOutput = model({"pixels": pixels})
            words = Words(output.x[0], output.masks[0].float().cpu().numpy())
            masks = halved(torch.from_numpy(val.masks[place : place + 1]).float() / 255)[0].numpy() > 0.5
            for k in np.flatnonzero(val.known[place] & masks.any(axis=(1, 2))):
                scores.append(self._clicked(model, words, masks[k], int(k)))
        means = np.mean(scores, axis=0) if scores else np.zeros(CHECKED + 1)
        after = {f"dice_{n}": float(means[n]) for n in range(1, CHECKED + 1)}
        return {"dice": float(means[1:].mean()), "words": float(means[0]), **after}

    def _clicked(self, model: AdaptedSegmenter, words: Words, truth: Mask, k: int) -> list[float]:
        found = words.logits[k] > 0
        click, marks, dice = first_click(found, truth), Prompt(), [float(overlap(found, truth))]
        for _ in range(CHECKED):
            marks = Prompt((*marks.points, click))
            answer = answer_marks(model.head.refiner, words, marks, [k], self.parts)[k]
            found = np.zeros_like(truth) if answer is None else answer.logits > 0
            dice.append(float(overlap(found, truth)))
            click = next_click(found, truth)
        return dice


def _ask(output: SegmentationOutput, batch: Mapping[str, Any]) -> list[_Asked]:
    """Of each film one class that is known and there, with a start that was spoilt."""
    targets, known = (batch["target"] > 0.5).cpu().numpy(), batch["known"].cpu().numpy()
    logits = output.masks.float().cpu().numpy()
    asked = []
    for row, seed in enumerate(batch["seeds"].tolist()):
        random = np.random.default_rng((seed, 2))
        there = np.flatnonzero(known[row] & targets[row].any(axis=(1, 2)))
        if len(there):
            k = int(random.choice(there))
            asked.append(_Asked(row, targets[row, k], spoil(logits[row, k], random), random))
    return asked
