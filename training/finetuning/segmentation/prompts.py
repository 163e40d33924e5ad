"""Sections on what is asked of a segmentation adapter beside its classes: clicks, boxes, words, and films that hold nothing.

marks    clicks and boxes: `clicks.py`
words    wordings kept from training; those that mean nothing here must draw nothing
nothing  one grey, noise, and films cut into tiles and shuffled
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from foundation.preprocess import render
from training.finetuning.segmentation.asked import Segmentation, size_of
from training.finetuning.segmentation.clicks import click_section
from training.finetuning.segmentation.trainee import nothing, overlap
from training.finetuning.trunk_cache import to_pixels
from training.manifests.manifest import Row
from training.measuring.metrics import PatientBootstrap, Statistic, weighted_mean
from training.measuring.report import Measure, Section

MARKED_FILMS = 100  # spread evenly over the split
EMPTY_FILMS = 60
EMPTY_KINDS = ("one grey", "noise", "shuffled tiles")


def prompt_sections(asked: Segmentation, rows: Sequence[Row]) -> list[Section]:
    """The tower must carry the adapter."""
    some = rows[:: max(1, len(rows) // MARKED_FILMS)][:MARKED_FILMS]
    marks = click_section(asked, some) if asked.recipe.clicks.epochs else []
    words = _words(asked, rows) if asked.recipe.views.spoken and asked.recipe.head.phrases else []
    return [*marks, *words, _nothing(asked, rows[:EMPTY_FILMS])]


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
