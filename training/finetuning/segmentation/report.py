"""Sections of a report on a segmentation adapter: masks by class beside the mean mask and a U-Net, in whom, and pictures.

Films are scored in their own geometry, source by source; a class is scored on the films whose masks speak of it. What
clicks, boxes, words and empty films do is in `prompts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapters.lora import load_weights, remove_lora
from adapters.tasks.parts import largest_parts
from adapters.tasks.segmentation import SegmentationResult
from adapters.tasks.volume import VolumeSegmentation
from foundation.errors import InvalidRequest
from foundation.image import MedicalImage
from foundation.preprocess import to_8bit, to_film
from training.finetuning.segmentation.asked import Segmentation, size_of
from training.finetuning.segmentation.masks import Mask, class_names, load_masked, load_volumes, with_unions
from training.finetuning.segmentation.prompts import prompt_sections
from training.finetuning.segmentation.scores import (
    DISTANCES,
    MEASURES,
    TOLERANCE_MM,
    Ruler,
    SegmentationScores,
    mean_mask,
    ruler_of,
    score_masks,
    spread_out,
    unit_of,
)
from training.manifests.manifest import Row
from training.measuring.metrics import PatientBootstrap, Statistic, difference, weighted_mean
from training.measuring.plots import FilmPicture, films_plot, interval_plot
from training.measuring.report import Measure, Section
from training.measuring.sections import group_of

MEAN_MASK, UNET = "mean mask", "U-Net"
GROUPS = ("view", "sex", "age")
SHOWN = 4  # pictures of the best and as many of the worst
Found = Mapping[str, Mask]
Draw = Callable[[int, Row, MedicalImage], Found]
"""From a film's place among the rows, its row and the film to the masks found in it, by name."""


def segmentation_sections(asked: Segmentation) -> list[Section]:
    """Sections of each source of the split, pictures, then what marks and words add. The backbone is left as it was."""
    rows = asked.rows(asked.split)
    if not rows:
        raise InvalidRequest(
            f"split {asked.split!r} has no row with a mask of {asked.adapter.card.name}: give a manifest with such masks",
            param="manifest",
        )
    load_weights(asked.backbone.image_tower, asked.adapter.lora)
    try:
        ours = _score(asked, rows, lambda _, row, film: _named(asked, asked.draw(film)))
        films = [row for row in rows if not asked.read(row)[0].is_volume]
        extras = [_pictures(asked, rows, ours), *prompt_sections(asked, films)] if films else []
    finally:
        remove_lora(asked.backbone.image_tower)
    by = {asked.adapter.card.name: ours}
    notes = []
    can_learn = bool(asked.rows("train") and asked.rows("val"))  # without such rows there is nothing to compare with
    if asked.unet_cache is not None and films and can_learn:
        by[UNET], note = _unet(asked, rows, asked.unet_cache)
        notes.append(f"{UNET}: MONAI's, {note}.")
    if can_learn:
        by[MEAN_MASK] = _mean_mask(asked, rows)
    sources = dict.fromkeys(str(row.get("source") or "films") for row in rows)
    places = {name: [n for n, row in enumerate(rows) if str(row.get("source") or "films") == name] for name in sources}
    sections = []
    for name, where in places.items():
        sections.append(_source_section(asked, name, rows, where, by, " ".join(notes)))
        sections.append(_groups(asked, name, rows, where, ours))
    return [section for section in (*sections, *extras) if section.measures or section.plots]


def _named(asked: Segmentation, result: SegmentationResult | VolumeSegmentation) -> Found:
    return {label: result.mask(label) for label in asked.labels}


def _score(asked: Segmentation, rows: Sequence[Row], draw: Draw) -> SegmentationScores:
    height = asked.recipe.data.film_height_mm

    def pairs() -> Iterator[tuple[Found, Found, Ruler]]:
        for place, row in enumerate(rows):
            film, truth = asked.read(row)
            yield draw(place, row, film), truth, ruler_of(film, height)

    return score_masks(asked.labels, [row.patient_id for row in rows], pairs(), unit_of(height))


def _mean_mask(asked: Segmentation, rows: Sequence[Row]) -> SegmentationScores:
    contract, classes = asked.backbone.contract, class_names(asked.masks)
    nothing = np.zeros((0,), np.uint8)  # the mean mask looks at no film
    volumes = asked.read(rows[0])[0].is_volume

    def load(split: str) -> Any:
        if volumes:
            return load_volumes(asked.rows(split), asked.masks, contract, 0)
        return load_masked(asked.rows(split), asked.masks, nothing, contract)

    mean = mean_mask(load("train"), load("val"))

    def draw(_: int, row: Row, film: MedicalImage) -> Found:
        drawn = [spread_out(mask, film) for mask in mean(*size_of(film), contract)]
        return with_unions(dict(zip(classes, drawn, strict=True)), asked.recipe.data.unions)

    return _score(asked, rows, draw)


def _unet(asked: Segmentation, rows: Sequence[Row], cache: Path) -> tuple[SegmentationScores, str]:
    from training.finetuning.segmentation.unet import unet_chances

    contract, classes, parts = asked.backbone.contract, class_names(asked.masks), asked.recipe.head.parts
    learnt = {split: asked.rows(split) for split in ("train", "val")}
    chances, note = unet_chances(asked.recipe, contract, learnt, rows, cache, seed=asked.seed, log=asked.log)

    def draw(place: int, _: Row, film: MedicalImage) -> Found:
        drawn = [largest_parts(to_film(one, *size_of(film), contract) >= 0.5, parts) for one in chances[place]]
        return with_unions(dict(zip(classes, drawn, strict=True)), asked.recipe.data.unions)

    return _score(asked, rows, draw), note


# --- tables ----------------------------------------------------------------------------------------------------------


def _source_section(
    asked: Segmentation,
    source: str,
    rows: Sequence[Row],
    places: Sequence[int],
    by: Mapping[str, SegmentationScores],
    notes: str,
) -> Section:
    draws = PatientBootstrap([rows[place].patient_id for place in places], asked.resamples, asked.seed)
    ours = by[asked.adapter.card.name]
    measures: list[Measure] = []
    marks: dict[str, list[Any]] = {name: [] for name in by}
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
        for name, scores in by.items():
            if scores is not ours:
                gain = difference(_of(ours, "dice", label, places), _of(scores, "dice", label, places))
                measures.append(Measure("dice gain", draws.estimate(gain), f"over {name}", label, source=source))
    plot = interval_plot(f"dice-{source}.png", f"{source}: Dice", labels, marks, axis="Dice", chance=None)
    note = (
        f"{len(places)} films of {draws.patients} patients, in each film's own geometry. Surface dice: share of the borders "
        f"within {TOLERANCE_MM:g} {ours.unit} of one another. {MEAN_MASK}: the mean training mask, the same for every film. "
        f"{notes}"
    )
    return Section(f"{source}: masks", note.strip(), tuple(measures), rows=("label", "by"), columns=("name",), plots=(plot,))


def _of(scores: SegmentationScores, measure: str, label: str, places: Sequence[int]) -> Statistic:
    values = scores.values[measure][list(places), scores.labels.index(label)]
    return lambda weights: weighted_mean(values, weights)


def _groups(asked: Segmentation, source: str, rows: Sequence[Row], places: Sequence[int], ours: SegmentationScores) -> Section:
    """Dice of unions (of every class where there are none) among films of one view, sex and age band."""
    measures, by = [], asked.adapter.card.name
    for label in asked.recipe.data.unions or asked.adapter.card.labels:
        there = ours.there[:, ours.labels.index(label)]
        for name in GROUPS:
            for value in sorted({group_of(rows[place], name) for place in places} - {""}):
                among = [place for place in places if group_of(rows[place], name) == value and there[place]]
                if len(among) >= asked.min_count:
                    draws = PatientBootstrap([rows[place].patient_id for place in among], asked.resamples, asked.seed)
                    for measure in ("dice", "hd95"):
                        estimate = draws.estimate(_of(ours, measure, label, among))
                        group = f"{name}={value}"
                        measures.append(Measure(measure, estimate, by, label, group, len(among), source=source))
    return Section(f"{source}: masks, in whom", "", tuple(measures), rows=("label", "group"), columns=("name",))


def _pictures(asked: Segmentation, rows: Sequence[Row], ours: SegmentationScores) -> Section:
    """The films with the best and the worst mean Dice; the true border green, the drawn one red."""
    dice = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in ours.values["dice"]])
    order = [place for place in np.argsort(-dice, kind="stable").tolist() if np.isfinite(dice[place])]
    worst = [place for place in order[::-1][:SHOWN] if place not in order[:SHOWN]][::-1]
    pictures = []
    for place in [*order[:SHOWN], *worst]:
        film, truth = asked.read(rows[place])
        if not film.is_volume:
            found = _named(asked, asked.draw(film))
            known = [label for label in asked.labels if label in truth]
            outlines = {"true": _joined(truth, known), "drawn": _joined(found, known)}
            grey = to_8bit(film)
            title = f"{rows[place].get('source') or ''} Dice {dice[place]:.3f}"
            pictures.append(FilmPicture(title, grey if grey.ndim == 2 else grey[..., 0], outlines))
    plot = films_plot("films-best-worst.png", "Best and worst: true borders green, drawn red", pictures, SHOWN)
    return Section("Pictures", "Real films: keep this picture where the films may be kept.", plots=(plot,))


def _joined(masks: Found, labels: Sequence[str]) -> Mask:
    return np.asarray(np.any([masks[label] for label in labels], axis=0))
