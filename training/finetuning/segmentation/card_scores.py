"""Scores of a segmentation adapter on a split: masks in each film's geometry, and the figures of its card.

How one mask is measured: `scores.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from adapters.card import AdapterCard, Metric
from adapters.tasks.segmentation import SegmentationResult, Segmenter
from adapters.tasks.volume import VolumeSegmentation, segment_volume
from foundation.image import MedicalImage
from training.finetuning.segmentation.masks import Mask, MaskedFilms, class_names, read_masked, with_unions
from training.finetuning.segmentation.recipe import Job
from training.finetuning.segmentation.scores import (
    DISTANCES,
    MEASURES,
    Ruler,
    SegmentationScores,
    mean_mask,
    ruler_of,
    score_masks,
    spread_out,
    unit_of,
)
from training.finetuning.segmentation.trainee import AdaptedSegmenter, SegmentationTrainee
from training.measuring.metrics import Statistic


def score(
    job: Job, trainee: SegmentationTrainee, model: AdaptedSegmenter, films: MaskedFilms, card: AdapterCard
) -> SegmentationScores:
    """What is drawn on each film, in its own geometry, against its masks. card: with the thresholds that are stored."""
    contract, data = job.backbone.contract, job.recipe.data
    segmenter = Segmenter(card, model.head, data.unions, job.recipe.head.parts, data.context)
    labels, rows = (*card.labels, *data.unions), tuple(dict.fromkeys(films.rows))
    answers = zip(*trainee.predict(model, films), strict=True) if len(rows) == len(films.rows) else None  # None: volumes

    def draw(film: MedicalImage) -> SegmentationResult | VolumeSegmentation:
        if answers is None:
            return segment_volume(segmenter, lambda pixels: model.features({"pixels": pixels}), film, contract)
        return segmenter.result(*next(answers), (film.pixels.shape[1], film.pixels.shape[2]), contract)

    def pairs() -> Iterator[tuple[dict[str, Mask], dict[str, Mask], Ruler]]:
        for row in rows:
            film, truth = read_masked(row, data.masks)
            result = draw(film)
            found = {label: result.mask(label) for label in labels}
            yield found, with_unions(truth, data.unions), ruler_of(film, data.film_height_mm)

    return score_masks(labels, [row.patient_id for row in rows], pairs(), unit_of(data.film_height_mm))


def score_mean_mask(job: Job, films: Mapping[str, MaskedFilms], split: str) -> SegmentationScores:
    """The baseline: the mean mask of the training films, drawn on each film of the split."""
    data, contract = job.recipe.data, job.backbone.contract
    labels, draw = class_names(data.masks), mean_mask(films["train"], films["val"])
    rows = tuple(dict.fromkeys(films[split].rows))

    def pairs() -> Iterator[tuple[dict[str, Mask], dict[str, Mask], Ruler]]:
        for row in rows:
            film, truth = read_masked(row, data.masks)
            drawn = [spread_out(mask, film) for mask in draw(film.pixels.shape[1], film.pixels.shape[2], contract)]
            found = with_unions(dict(zip(labels, drawn, strict=True)), data.unions)
            yield found, with_unions(truth, data.unions), ruler_of(film, data.film_height_mm)

    patients = [row.patient_id for row in rows]
    return score_masks((*labels, *data.unions), patients, pairs(), unit_of(data.film_height_mm))


def card_metrics(split: str, ours: SegmentationScores, baseline: SegmentationScores) -> Iterator[Metric]:
    """Every measure of every class, the mean training mask's Dice beside it, and how often nothing was rightly said."""
    draws = ours.bootstrap()

    def metric(name: str, label: str, statistic: Statistic, count: int) -> Metric | None:
        one = draws.estimate(statistic)
        if not math.isfinite(one.value):
            return None
        low, high = (None if math.isnan(bound) else round(bound, 4) for bound in (one.low, one.high))
        return Metric(name, label, split, round(one.value, 4), low, high, one.level, count, len(ours.patients))

    for label in ours.labels:
        names = [(f"{measure} ({ours.unit})" if measure in DISTANCES else measure, measure) for measure in MEASURES]
        made = [metric(name, label, ours.statistic(measure, label), ours.count(label)) for name, measure in names]
        made.append(metric("mean mask dice", label, baseline.statistic("dice", label), ours.count(label)))
        made.append(metric("nothing there, nothing drawn", label, ours.empty_statistic(label), 0))
        yield from (one for one in made if one is not None)
