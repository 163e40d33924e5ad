"""Does the chat tell the right side of a real film? Asked of the films whose findings radiologists have boxed.

    boxes: [{"label": "Effusion", "xywh_1024": [x, y, width, height]}, ...]      over the film squeezed to 1024 x 1024

A finding lies on the side of the middle of its box; boxes on both sides make it bilateral. Of phantoms, see `chat_check.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from foundation.places import LATERAL
from foundation.prompts import terms
from training.manifests.manifest import Row
from training.measuring.metrics import PatientBootstrap, weighted_mean
from training.measuring.pointing import BOX_WORDS, FRAME
from training.measuring.report import Measure, Section
from training.measuring.scoring import Film
from training.pretraining.decoder.agreement import sides_in


class Answers(Protocol):
    @property
    def text(self) -> str: ...


class Chat(Protocol):
    def answer(self, film: Film, question: str) -> Answers: ...


def boxed_sides(row: Row) -> Mapping[str, frozenset[str]]:
    """The sides of each boxed finding of a film; empty where it has no boxes."""
    sides: dict[str, set[str]] = {}
    for box in row.get("boxes") or ():
        label = str(box.get("label", "")).lower()
        name, frame = BOX_WORDS.get(label, label), box.get("xywh_1024")
        if name in LATERAL and frame:
            sides.setdefault(name, set()).add(_side(frame))
    return {name: frozenset(held) for name, held in sides.items()}


def _side(frame: Sequence[Any]) -> str:
    """The patient's left is the right half of the film."""
    x, _, width, _ = (float(one) for one in frame)
    return "left" if x + width / 2 >= FRAME / 2 else "right"


def boxed_section(chat: Chat, rows: Sequence[Row], films: Sequence[Film], *, resamples: int, seed: int) -> tuple[Section, ...]:
    """rows, films: those with boxes; none gives no section. One question a boxed finding."""
    told: list[list[float]] = []
    right: list[list[float]] = []
    for row, film in zip(rows, films, strict=True):
        pairs = [
            (sides_in(chat.answer(film, f"Where is the {terms(name)[0]}?").text), truth)
            for name, truth in boxed_sides(row).items()
        ]
        told.append([float(bool(said)) for said, _ in pairs])
        right.append([float(said == truth) for said, truth in pairs if said])
    if not rows:
        return ()
    draws = PatientBootstrap([row.patient_id for row in rows], resamples, seed)
    measures = []
    for name, held in (("a side is told", told), ("right, where told", right)):
        values = np.array([np.mean(one) if one else np.nan for one in held])
        measures.append(Measure(name, draws.estimate(partial(weighted_mean, values)), "films", films=len(rows)))
    note = (
        '"Where is the ...?" of each finding that a radiologist has boxed, whether or not it reached its threshold. A finding '
        "below it is denied, and tells no side. Always naming one side is right about half the time."
    )
    return (Section("Chat: sides on boxed films", note, tuple(measures), rows=("by",), columns=("name",)),)
