"""Findings read by a served classification adapter: calibrated probabilities and thresholds, or why there are none."""

from __future__ import annotations

import html
from typing import Any

from app import words
from app.adapter_question import Question, build_question
from app.bars import Bar, bars_html
from app.evidence import card, provenance_html, refusal_card
from app.film import OpenFilm
from app.panels.film import FilmColumn
from app.shelf import Shelf
from foundation.errors import InvalidRequest
from serving.client import Client
from serving.schemas.classify import ClassifyItem


class FindingsPanel:
    def __init__(self, client: Client) -> None:
        self._client = client

    def predict(self, film: OpenFilm | None, adapter: str | None) -> str:
        """The card of probabilities. Raises a VesaliusError whose sentence is for the person."""
        if not adapter:
            raise InvalidRequest(words.NO_CHOICE)
        if film is None:
            raise InvalidRequest(words.NO_FILM)
        (item,) = self._client.classify([film.picture()], adapter).data
        if not item.assessed:
            return refusal_card(item.looks_like, item.provenance, item.timings)
        found = sorted(item.labels, key=lambda one: -one.probability)
        bars = bars_html([Bar(one.label, one.probability, one.threshold) for one in found])
        notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in notes_of(item))
        return card(adapter, [bars, notes, provenance_html(item.provenance, item.timings)])


def notes_of(item: ClassifyItem) -> list[str]:
    """What the numbers are, and what they leave open."""
    if exclude_one_another(item):
        return [words.MULTI_CLASS, *_one_of(item)]
    notes = [words.CALIBRATED]
    if item.normal is not None and len(item.labels) > 1:
        notes.append(words.NORMAL.format(value=f"{item.normal:.2f}"))
    open_labels = [one for one in item.labels if one.conformal is not None and one.conformal.set == "uncertain"]
    if open_labels and open_labels[0].conformal is not None:
        coverage = _share(open_labels[0].conformal.coverage)
        notes.append(words.CANNOT_TELL.format(coverage=coverage, labels=", ".join(one.label for one in open_labels)))
    return notes


def exclude_one_another(item: ClassifyItem) -> bool:
    """Whether these are classes of which a film has one, so that their probabilities add up to one."""
    total = sum(one.probability for one in item.labels)
    return item.normal is None and len(item.labels) > 1 and abs(total - 1.0) < 1e-3


def _one_of(item: ClassifyItem) -> list[str]:
    if item.conformal is None:
        return []
    said = words.ONE_OF if item.conformal.labels else words.NONE_OF
    return [said.format(coverage=_share(item.conformal.coverage), labels=", ".join(item.conformal.labels))]


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def build_findings(panel: FindingsPanel, shelf: Shelf, film: FilmColumn, page: Any) -> None:
    """page: the Blocks, whose load asks which adapters are served."""
    question = Question(words.FINDINGS_INTRO, words.PREDICT, "adapter", "predict", "predicted")
    build_question(question, lambda shown, name: (panel.predict(shown, name),), shelf, film, page)
