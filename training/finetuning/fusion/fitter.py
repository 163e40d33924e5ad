"""Fitter: heads for the features of one job, fitted from the same start each time, and the grid of what was missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from adapters.tasks.fusion import SubsetRule
from adapters.tasks.fusion_head import NOTE, FusionHead, FusionInputs
from adapters.tasks.tabular import TabularField
from foundation.errors import ManifestError
from training.finetuning.fusion.data import Case, FieldStatistics
from training.finetuning.fusion.features import Features
from training.finetuning.fusion.fit import Learning, Part, candidates, fit, new_head, own_logits, sizes, without
from training.finetuning.fusion.recipe import Job
from training.finetuning.fusion.rules import answer_own, choose_rules
from training.finetuning.fusion.scores import Grid

MISSING_RATES = (0.0, 0.3, 0.6, 0.9)
DRAWS = 5  # of what is missing, in the grid


class Fitter:
    """Makes heads for one job's features, and inputs for them."""

    def __init__(self, job: Job, fields: tuple[TabularField, ...], statistics: FieldStatistics, seen: Features) -> None:
        self.recipe, self.fields, self.settle = job.recipe, fields, job.settle
        self.modalities = self.recipe.data.modalities
        notes = [note for note in seen.notes if note is not None]
        if NOTE in self.modalities and len(notes) < 2:
            raise ManifestError(
                "Fewer than two cases keep a note once sentences that state the outcome are cut; set note = false."
            )
        shape = sizes(self.recipe.head, seen.films, job.backbone.embed_dim, seen.level_width, len(notes), len(seen.counts))
        torch.manual_seed(self.recipe.seed)
        blank = FusionHead(shape, self.modalities, fields, self.recipe.head.dropout)
        stacked = np.stack(notes) if notes else np.zeros((0, shape.embed_dim), np.float32)
        self.template = new_head(self.recipe.head, blank, seen.films, stacked, statistics)
        self.settle(self.template.state_dict().values())  # films are read through it before the head is fitted
        self.start = {name: tensor.clone() for name, tensor in self.template.state_dict().items()}

    def inputs(self, cases: Sequence[Case], seen: Features) -> FusionInputs:
        with torch.no_grad():
            read = self._read(seen)
            notes = [None if note is None else self.template.read_note(torch.from_numpy(note)[None])[0] for note in seen.notes]
            return self.template.gather(read, notes, [case.table for case in cases])

    def _read(self, seen: Features) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        film = (torch.from_numpy(seen.films.described) - self.template.film_mean) @ self.template.film_axes
        patch = (torch.from_numpy(seen.films.tokens) - self.template.patch_mean) @ self.template.patch_axes
        return list(zip(film.split(list(seen.counts)), patch.split(list(seen.counts)), strict=True))

    def fit(self, lessons: Learning) -> FusionHead:
        """A head fitted anew from the same start."""
        head = FusionHead(self.template.shape, self.modalities, self.fields, self.recipe.head.dropout)
        head.load_state_dict(self.start)
        fit(head, lessons, self.recipe.head, self.recipe.seed)
        self.settle(head.state_dict().values())
        return head

    def grid(self, whole: FusionHead, lessons: Learning, test: FusionInputs | None, cases: Sequence[Case]) -> Grid:
        """AUROC where modalities were missing in training (first) and in the question (second), on held-back and test."""
        held: dict[tuple[float, float], float] = {}
        tested: dict[tuple[float, float], float] = {}
        asked = [(held, lessons.inputs, lessons.truth, lessons.parts)]
        if test is not None:
            asked.append((tested, test, np.array([case.truth for case in cases]), ()))
        for learnt in MISSING_RATES:
            random = torch.Generator().manual_seed(self.recipe.seed)
            sparse = replace(lessons, inputs=without(lessons.inputs, learnt, random)) if learnt else lessons
            head = self.fit(sparse) if learnt else whole
            made = candidates(head, sparse.inputs, lessons.parts)
            rules = choose_rules(self.modalities, made, lessons.truth, lessons.patients, self.recipe.head.hurdle)
            for rate in MISSING_RATES:
                for cells, inputs, truth, parts in asked:
                    values = [
                        Grid.auroc(self._answer(head, rules, inputs, parts, rate, draw), truth)
                        for draw in range(DRAWS if rate else 1)
                    ]
                    cells[learnt, rate] = float(np.mean(values))
        return Grid(MISSING_RATES, held, tested)

    def _answer(
        self,
        head: FusionHead,
        rules: Sequence[SubsetRule],
        inputs: FusionInputs,
        parts: Sequence[Part],
        rate: float,
        draw: int,
    ) -> npt.NDArray[np.float64]:
        """(N,) calibrated logits where modalities are missing at this rate."""
        random = torch.Generator().manual_seed(self.recipe.seed + draw + 1)
        asked = without(inputs, rate, random)
        return answer_own(self.modalities, rules, own_logits(head, asked, parts or None), asked.present.numpy())
