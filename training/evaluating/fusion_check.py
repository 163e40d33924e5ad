"""Sections of an evaluation of a fusion adapter: the finished adapter on a split, every subset beside its best single.

Gradient boosting learns from this manifest's train and val cases, where it has any.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from adapters.lora import load_weights, remove_lora
from adapters.tasks.fusion import FusionPredictor
from adapters.tasks.fusion_head import FusionInputs
from foundation.errors import InvalidRequest
from training.finetuning.fusion.data import Case, read_cases
from training.finetuning.fusion.fit import candidates
from training.finetuning.fusion.recipe import FusionRecipe
from training.finetuning.fusion.report import score_sections
from training.finetuning.fusion.rules import ConformalBounds
from training.finetuning.fusion.scores import FusionScores, score_boosting
from training.manifests.manifest import Manifest
from training.measuring.asked import Asked
from training.measuring.report import Section
from training.measuring.scoring import read_rows, run_films
from training.recipe import fill


def fusion_sections(asked: Asked) -> list[Section]:
    """The backbone is left as it was."""
    card = asked.adapter.card
    recipe = fill(FusionRecipe, card.recipe, "the card's recipe")
    predictor = FusionPredictor.open(card, asked.adapter.head)
    cases = read_cases(asked.manifest.of(asked.split), recipe.data)
    if len({case.truth for case in cases}) < 2:
        raise InvalidRequest(
            f"split {asked.split!r} has no cases with and without {predictor.label!r} ({recipe.data.outcome.column}): "
            "give a manifest with both",
            param="manifest",
        )
    inputs = _inputs(asked, predictor, cases)
    learnt = tuple(case for split in ("train", "val") for case in _cases(asked.manifest, split, recipe))
    fits = len({case.truth for case in learnt}) == 2 and asked.split not in ("train", "val")
    boosted = score_boosting((), predictor.fields, learnt, cases, asked.seed)[1] if fits else {}
    bounds = ConformalBounds(
        card.conformal.coverage or recipe.head.coverage, card.conformal.thresholds[0], float(card.head["conformal_absent"])
    )
    scores = FusionScores(
        asked.split,
        cases,
        predictor.modalities,
        candidates(predictor.head, inputs),
        tuple(predictor.rules.values()),
        inputs.present.numpy(),
        boosted,
        bounds,
        resamples=asked.resamples,
    )
    kept = np.isfinite(scores.full)
    return score_sections(scores.among(kept), recipe.head.hurdle)


def _cases(manifest: Manifest, split: str, recipe: FusionRecipe) -> tuple[Case, ...]:
    rows = [row for row in manifest.rows if row.split == split]
    return read_cases(rows, recipe.data) if rows else ()


@torch.no_grad()
def _inputs(asked: Asked, predictor: FusionPredictor, cases: Sequence[Case]) -> FusionInputs:
    head, rows = predictor.head, [row for case in cases for row in case.rows]
    head.to(asked.running.device)
    load_weights(asked.backbone.image_tower, asked.adapter.lora)
    try:
        films = read_rows(rows, asked.backbone.contract)
        read = [tuple(part.cpu() for part in head.read_films(f)) for f in run_films(asked.backbone, films, asked.running)]
    finally:
        remove_lora(asked.backbone.image_tower)
        head.to("cpu")
    counts = [len(case.rows) for case in cases]
    film, patch = (torch.cat(part).split(counts) for part in zip(*read, strict=True))
    notes = [
        None if case.note is None else head.read_note(asked.backbone.encode_text([case.note]).float().cpu())[0]
        for case in cases
    ]
    return head.gather(list(zip(film, patch, strict=True)), notes, [case.table for case in cases])
