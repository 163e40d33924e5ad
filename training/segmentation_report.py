"""Sections of a report on a segmentation adapter: masks by class, beside the mean training mask, and what clicks add.

Films are scored in their own geometry, source by source; a class is scored on the films whose masks speak of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.files import Adapter
from adapters.lora import load_weights, remove_lora
from adapters.tasks.prompting import Point, Prompt
from adapters.tasks.segmentation import Segmenter
from foundation.errors import InvalidRequest
from foundation.image import MedicalImage
from foundation.preprocess import normalise, render
from training.finetune_segmentation import SegmentationRecipe
from training.manifest import Manifest, Row
from training.masks import Mask, MaskRecipe, has_masks, load_masked, read_masked
from training.metrics import PatientBootstrap, Statistic, difference, weighted_mean
from training.plots import curve_plot, interval_plot
from training.recipe import fill
from training.report import Measure, Section
from training.scoring import Backbone, Running
from training.segmentation import overlap
from training.segmentation_scores import (
    DISTANCES,
    MEASURES,
    TOLERANCE_MM,
    Ruler,
    SegmentationScores,
    mean_mask,
    ruler_of,
    score_masks,
    unit_of,
)

MEAN_MASK = "mean mask"
CLICKS = 5
CLICKED_FILMS = 40


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What one report on masks has open."""

    backbone: Backbone
    adapter: Adapter
    manifest: Manifest
    split: str
    running: Running
    resamples: int
    seed: int

    @property
    def recipe(self) -> SegmentationRecipe:
        return fill(SegmentationRecipe, self.adapter.card.recipe, "the card's recipe")

    @property
    def masks(self) -> tuple[MaskRecipe, ...]:
        return self.recipe.data.masks

    def rows(self, split: str) -> tuple[Row, ...]:
        return tuple(row for row in self.manifest.of(split) if has_masks(row, self.masks))


def segmentation_sections(asked: Segmentation) -> list[Section]:
    """Sections of each source of the split, then one on clicks. The backbone is left as it was."""
    rows = asked.rows(asked.split)
    if not rows:
        raise InvalidRequest(
            f"split {asked.split!r} has no row with a mask of {asked.adapter.card.name}: give a manifest with such masks",
            param="manifest",
        )
    load_weights(asked.backbone.image_tower, asked.adapter.lora)
    try:
        ours = _score(asked, rows)
        clicks = _clicks(asked, rows[:CLICKED_FILMS])
    finally:
        remove_lora(asked.backbone.image_tower)
    baseline = _score_mean_mask(asked, rows)
    sources = dict.fromkeys(str(row.get("source") or "films") for row in rows)
    places = {name: [n for n, row in enumerate(rows) if str(row.get("source") or "films") == name] for name in sources}
    sections = [_source_section(asked, name, rows, where, ours, baseline) for name, where in places.items()]
    return [*sections, *clicks]


def _source_section(
    asked: Segmentation,
    source: str,
    rows: Sequence[Row],
    places: Sequence[int],
    ours: SegmentationScores,
    baseline: SegmentationScores,
) -> Section:
    draws = PatientBootstrap([rows[place].patient_id for place in places], asked.resamples, asked.seed)
    by = {asked.adapter.card.name: ours, MEAN_MASK: baseline}
    measures, marks = [], {name: [] for name in by}  # type: ignore[var-annotated]
    labels = [label for k, label in enumerate(ours.labels) if ours.there[places, k].any()]
    for label in labels:
        for name, scores in by.items():
            for measure in MEASURES:
                estimate = draws.estimate(_of(scores, measure, label, places))
                shown = f"{measure}, {ours.unit}" if measure in DISTANCES else measure
                count = int(scores.there[places, scores.labels.index(label)].sum())
                measures.append(Measure(shown, estimate, name, label, films=count, source=source))
                if measure == "dice":
                    marks[name].append(estimate)
        gain = difference(_of(ours, "dice", label, places), _of(baseline, "dice", label, places))
        measures.append(Measure("dice gain", draws.estimate(gain), f"over {MEAN_MASK}", label, source=source))
    plot = interval_plot(f"dice-{source}.png", f"{source}: Dice", labels, marks, axis="Dice", chance=None)
    note = (
        f"{len(places)} films of {draws.patients} patients, in each film's own geometry. Surface dice: share of the borders "
        f"within {TOLERANCE_MM:g} of one another. {MEAN_MASK}: the mean training mask, the same for every film."
    )
    return Section(f"{source}: masks", note, tuple(measures), rows=("label", "by"), columns=("name",), plots=(plot,))


def _of(scores: SegmentationScores, measure: str, label: str, places: Sequence[int]) -> Statistic:
    values = scores.values[measure][list(places), scores.labels.index(label)]
    return lambda weights: weighted_mean(values, weights)


@torch.inference_mode()
def _features(asked: Segmentation, row: Row) -> tuple[MedicalImage, dict[str, Mask], Any, Tensor]:
    film, truth = read_masked(row, asked.masks)
    contract = asked.backbone.contract
    pixels = torch.from_numpy(normalise(render(film, contract), contract))[None].to(asked.running.device)
    with asked.running.autocast():
        return film, truth, asked.backbone.encode_image(pixels), pixels


def _score(asked: Segmentation, rows: Sequence[Row]) -> SegmentationScores:
    segmenter = _open(asked)

    def pairs() -> Iterator[tuple[dict[str, Mask], dict[str, Mask], Ruler]]:
        for row in rows:
            film, truth, features, pixels = _features(asked, row)
            size = (film.pixels.shape[1], film.pixels.shape[2])
            [result] = segmenter(features, pixels, [size], asked.backbone.contract)
            found = {label: result.mask(label) for label in result.labels}
            yield found, truth, ruler_of(film, asked.recipe.data.film_height_mm)

    height = asked.recipe.data.film_height_mm
    return score_masks(asked.adapter.card.labels, [row.patient_id for row in rows], pairs(), unit_of(height))


def _score_mean_mask(asked: Segmentation, rows: Sequence[Row]) -> SegmentationScores:
    contract, height = asked.backbone.contract, asked.recipe.data.film_height_mm
    nothing = np.zeros((0,), np.uint8)  # the mean mask looks at no film
    train, val = (load_masked(asked.rows(split), asked.masks, nothing, contract) for split in ("train", "val"))
    draw, labels = mean_mask(train, val), asked.adapter.card.labels

    def pairs() -> Iterator[tuple[dict[str, Mask], dict[str, Mask], Ruler]]:
        for row in rows:
            film, truth = read_masked(row, asked.masks)
            drawn = draw(film.pixels.shape[1], film.pixels.shape[2], contract)
            yield dict(zip(labels, drawn, strict=True)), truth, ruler_of(film, height)

    return score_masks(labels, [row.patient_id for row in rows], pairs(), unit_of(height))


# --- clicks ----------------------------------------------------------------------------------------------------------


def _clicks(asked: Segmentation, rows: Sequence[Row]) -> list[Section]:
    """Dice over the number of clicks, each where the answer so far is most wrong; the aim is one part of one class."""
    if not asked.recipe.views.prompted:
        return []
    segmenter = _open(asked)
    curves: list[list[float]] = []
    patients: list[str] = []
    for row in rows:
        film, truth, features, pixels = _features(asked, row)
        for label, mask in truth.items():
            part = _largest_part(mask)
            if part.any():
                curves.append(_click_through(segmenter, asked, label, part, film, features, pixels))
                patients.append(row.patient_id)
    if not curves:
        return []
    table = np.array(curves)
    draws = PatientBootstrap(patients, asked.resamples, asked.seed)
    measures = tuple(
        Measure("dice", draws.estimate(_column(table, k)), asked.adapter.card.name, f"{k + 1} clicks", films=len(table))
        for k in range(CLICKS)
    )
    plot = curve_plot("clicks.png", "Dice over clicks", "clicks", "Dice", {"largest part": table.mean(axis=0).tolist()})
    note = f"The largest connected part of each mask in {len(rows)} films; each click falls where the answer is most wrong."
    return [Section("What clicks add", note, measures, rows=("label",), columns=("name",), plots=(plot,))]


def _column(table: npt.NDArray[np.float64], k: int) -> Statistic:
    return lambda weights: weighted_mean(table[:, k], weights)


def _click_through(
    segmenter: Segmenter, asked: Segmentation, label: str, part: Mask, film: MedicalImage, features: Any, pixels: Tensor
) -> list[float]:
    size = (film.pixels.shape[1], film.pixels.shape[2])
    points: tuple[Point, ...] = ()
    found, dice = np.zeros(size, bool), []
    for _ in range(CLICKS):
        points = (*points, next_click(found, part))
        [result] = segmenter(features, pixels, [size], asked.backbone.contract, [Prompt(points)])
        found = result.mask(label)
        dice.append(float(np.nan_to_num(overlap(found, part))))
    return dice


def next_click(found: Mask, truth: Mask) -> Point:
    """The middle of the largest part that is wrong; inside where it is missing, outside where it is too much.

    The first click, on an empty answer, is the middle of the truth. An exact answer is clicked there again.
    """
    from scipy.ndimage import distance_transform_edt

    missing, surplus = _largest_part(truth & ~found), _largest_part(found & ~truth)
    wrong = surplus if surplus.sum() > missing.sum() and found.any() else missing
    if not wrong.any():
        wrong = truth
    depth = distance_transform_edt(np.pad(wrong, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return Point(float(row) + 0.5, float(column) + 0.5, wrong is not surplus)


def _largest_part(mask: Mask) -> Mask:
    from scipy.ndimage import label

    parts, count = label(mask)
    if not count:
        return np.zeros(mask.shape, bool)
    return np.asarray(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()))


def _open(asked: Segmentation) -> Segmenter:
    segmenter = Segmenter.open(asked.adapter.card, asked.adapter.head)
    segmenter.head.to(asked.running.device)
    return segmenter
