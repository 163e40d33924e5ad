"""Sections on what is asked of a segmentation adapter beside its classes: clicks, boxes, words, and films that hold nothing.

clicks   the aim is one connected part of one class; each click falls where the answer so far is most wrong
boxes    the same parts, by a box around them
words    wordings kept from training; those that mean nothing here must draw nothing
nothing  one grey, noise, and films cut into tiles and shuffled
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.tasks.prompting import Box, Point, Prompt
from adapters.tasks.segmentation import largest_parts
from foundation.image import MedicalImage
from foundation.preprocess import render
from training.finetuning.segmentation.asked import Segmentation, size_of
from training.finetuning.segmentation.masks import Mask
from training.finetuning.segmentation.trainee import nothing, overlap
from training.finetuning.trunk_cache import to_pixels
from training.manifests.manifest import Row
from training.measuring.metrics import PatientBootstrap, Statistic, weighted_mean
from training.measuring.plots import curve_plot
from training.measuring.report import Measure, Section

CLICKS = 5
MARKED_FILMS = 40
EMPTY_FILMS = 60
EMPTY_KINDS = ("one grey", "noise", "shuffled tiles")


def prompt_sections(asked: Segmentation, rows: Sequence[Row]) -> list[Section]:
    """The tower must carry the adapter."""
    some = rows[:: max(1, len(rows) // MARKED_FILMS)][:MARKED_FILMS]
    marks = _marks(asked, some) if asked.recipe.views.prompted else []
    words = _words(asked, rows) if asked.recipe.views.spoken and asked.recipe.head.phrases else []
    return [*marks, *words, _nothing(asked, rows[:EMPTY_FILMS])]


# --- marks -----------------------------------------------------------------------------------------------------------


def _marks(asked: Segmentation, rows: Sequence[Row]) -> list[Section]:
    """Dice over the number of clicks, and by a box."""
    curves: list[list[float]] = []
    patients: list[str] = []
    for row in rows:
        film, truth = asked.read(row)
        seen = asked.look(film)
        for label in asked.adapter.card.labels:
            part = largest_parts(truth[label], 1) if label in truth else np.zeros((1, 1), bool)
            if part.any():
                curves.append([*_click_through(asked, label, part, film, seen), _boxed(asked, label, part, film, seen)])
                patients.append(row.patient_id)
    if not curves:
        return []
    table, name = np.array(curves), asked.adapter.card.name
    draws = PatientBootstrap(patients, asked.resamples, asked.seed)
    titles = [*(f"{k + 1} clicks" for k in range(CLICKS)), "a box"]
    measures = tuple(
        Measure("dice", draws.estimate(_column(table, k)), name, title, films=len(table)) for k, title in enumerate(titles)
    )
    plot = curve_plot(
        "clicks.png", "Dice over clicks", "clicks", "Dice", {"largest part": table[:, :CLICKS].mean(axis=0).tolist()}
    )
    note = f"The largest connected part of each mask in {len(rows)} films; each click falls where the answer is most wrong."
    return [Section("What clicks and boxes add", note, measures, rows=("label",), columns=("name",), plots=(plot,))]


def _column(table: npt.NDArray[np.float64], k: int) -> Statistic:
    return lambda weights: weighted_mean(table[:, k], weights)


def _answer(asked: Segmentation, label: str, film: MedicalImage, seen: tuple[Any, Tensor], prompt: Prompt) -> Mask:
    [result] = asked.segmenter(*seen, [size_of(film)], asked.backbone.contract, [prompt])
    return result.mask(label)


def _click_through(asked: Segmentation, label: str, part: Mask, film: MedicalImage, seen: tuple[Any, Tensor]) -> list[float]:
    points: tuple[Point, ...] = ()
    found, dice = np.zeros(part.shape, bool), []
    for _ in range(CLICKS):
        points = (*points, next_click(found, part))
        found = _answer(asked, label, film, seen, Prompt(points))
        dice.append(float(np.nan_to_num(overlap(found, part))))
    return dice


def _boxed(asked: Segmentation, label: str, part: Mask, film: MedicalImage, seen: tuple[Any, Tensor]) -> float:
    rows, columns = (np.flatnonzero(part.any(axis=axis)) for axis in (1, 0))
    box = Box(float(rows[0]), float(columns[0]), float(rows[-1] + 1), float(columns[-1] + 1))
    return float(np.nan_to_num(overlap(_answer(asked, label, film, seen, Prompt(boxes=(box,))), part)))


def next_click(found: Mask, truth: Mask) -> Point:
    """The middle of the largest part that is wrong; inside where it is missing, outside where it is too much.

    The first click, on an empty answer, is the middle of the truth. An exact answer is clicked there again.
    """
    from scipy.ndimage import distance_transform_edt

    missing, surplus = largest_parts(truth & ~found, 1), largest_parts(found & ~truth, 1)
    wrong = surplus if surplus.sum() > missing.sum() and found.any() else missing
    if not wrong.any():
        wrong = truth
    depth = distance_transform_edt(np.pad(wrong, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return Point(float(row) + 0.5, float(column) + 0.5, wrong is not surplus)


# --- words -----------------------------------------------------------------------------------------------------------


def _words(asked: Segmentation, rows: Sequence[Row]) -> list[Section]:
    """Of each wording kept from training: Dice with what it means, or how often nothing was rightly drawn."""
    phrases = asked.recipe.head.phrases
    held = {word: phrase for phrase in phrases for word in phrase.held}
    if not held:
        return []
    with torch.inference_mode():
        embedded = dict(zip(held, asked.backbone.encode_text(list(held)).float(), strict=True))
    scores = {word: np.full(len(rows), np.nan) for word in held}
    for place, row in enumerate(rows):
        film, truth = asked.read(row)
        [result] = asked.segmenter.ask(*asked.look(film), [size_of(film)], asked.backbone.contract, embedded)
        for word, phrase in held.items():
            found = result.mask(word)
            if not phrase.classes:
                scores[word][place] = float(not found.any())
            elif all(name in truth for name in phrase.classes):
                meant = np.any([truth[name] for name in phrase.classes], axis=0)
                scores[word][place] = float(np.nan_to_num(overlap(found, meant)))
    draws = PatientBootstrap([row.patient_id for row in rows], asked.resamples, asked.seed)
    measures = []
    for word, phrase in held.items():
        name = "dice" if phrase.classes else "nothing drawn"
        label = f"{word} ({' + '.join(phrase.classes) or 'not there'})"
        count = int(np.isfinite(scores[word]).sum())
        measures.append(Measure(name, draws.estimate(_over(scores[word])), asked.adapter.card.name, label, films=count))
    note = "Wordings that training never used. One that means nothing here is right where nothing is drawn."
    return [Section("In free words", note, tuple(measures), rows=("label",), columns=("name",))]


def _over(values: npt.NDArray[np.float64]) -> Statistic:
    return lambda weights: weighted_mean(values, weights)


# --- nothing ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _nothing(asked: Segmentation, rows: Sequence[Row]) -> Section:
    """How often nothing is drawn, of any class, where there is nothing."""
    contract = asked.backbone.contract
    drawn = np.zeros((len(EMPTY_KINDS), len(rows)))
    for place, row in enumerate(rows):
        film = render(asked.read(row)[0], contract)
        plain = torch.from_numpy(film.transpose(2, 0, 1).astype(np.float32) / 255)
        for kind in range(len(EMPTY_KINDS)):
            random = np.random.default_rng((asked.seed, place, kind))
            pixels = to_pixels(nothing(plain, random, kind)[None], contract).to(asked.running.device)
            with asked.running.autocast():
                features = asked.backbone.encode_image(pixels)
            [result] = asked.segmenter(features, pixels, [film.shape[:2]], contract)
            drawn[kind, place] = float(not result.masks.any())
    draws = PatientBootstrap([row.patient_id for row in rows], asked.resamples, asked.seed)
    measures = tuple(
        Measure("nothing drawn", draws.estimate(_over(drawn[kind])), asked.adapter.card.name, title, films=len(rows))
        for kind, title in enumerate(EMPTY_KINDS)
    )
    return Section("Where there is nothing", "", measures, rows=("label",), columns=("name",))
