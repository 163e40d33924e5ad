"""How strange the film is among normal films: a p-value in words, a heat map, and what each way of looking says."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from app import words
from app.adapter_question import Question, build_question
from app.bars import Bar, track_html
from app.evidence import card, provenance_html, refusal
from app.figure import Layer, layered_html
from app.film import OpenFilm
from app.heat import FLOOR, strange_overlay
from app.panels.film import FilmColumn, FilmDesk
from app.shelf import Shelf
from foundation.errors import InvalidRequest
from serving.client import Client
from serving.schemas.anomaly import AnomalyItem

UNUSUAL = 0.05


@dataclass(frozen=True)
class Strangeness:
    """Both as HTML."""

    figure: str
    card: str


class AnomalyPanel:
    def __init__(self, client: Client, desk: FilmDesk) -> None:
        self._client, self._desk = client, desk

    def judge(self, film: OpenFilm | None, adapter: str | None) -> Strangeness:
        """Raises a VesaliusError whose sentence is for the person."""
        if film is None:
            raise InvalidRequest(words.NO_FILM)
        if not adapter:
            raise InvalidRequest(words.NO_CHOICE)
        (item,) = self._client.anomaly([film.picture()], adapter).data
        layers = []
        lines = []
        if item.heat is not None:
            layers.append(Layer(strange_overlay(item.heat, self._desk.contract), words.HEAT_LAYER))
            scale = f'{words.HEAT_NORMAL}<span class="legend" role="presentation"></span>{words.HEAT_STRANGE}'
            note = html.escape(words.HEAT_NOTE.format(share=f"{100 * FLOOR:.0f} %"))
            lines = [f"<p>{scale}</p>", f"<p>{note}</p>"]
        figure = layered_html(film, self._desk.contract, layers, lines) if item.assessed else ""
        return Strangeness(figure, strangeness_card(item))


def strangeness_card(item: AnomalyItem) -> str:
    provenance = provenance_html(item.provenance, item.timings)
    if not item.assessed or item.p_value is None:
        return card(words.ANOMALY_CARD, [*refusal(item.looks_like), provenance])
    verdict = next(sentence for at_most, sentence in words.ANOMALY_VERDICTS if item.p_value <= at_most)
    kind = "flag strong" if item.p_value <= UNUSUAL else "reliance"
    count = max(0, round(item.p_value * (item.normals + 1)) - 1)  # p counts the film itself, above and below the line
    counted = words.ANOMALY_COUNT.format(normals=item.normals, count=count, p=_p(item.p_value))
    caution = words.ANOMALY_NOT_DISEASE.format(normals=item.normals, least=_p(1 / (item.normals + 1)))
    parts = [
        f'<p class="{kind}">{html.escape(verdict)}</p>',
        f"<p>{html.escape(counted)}</p>",
        f'<p class="soft">{html.escape(caution)}</p>',
        _branches(item),
        provenance,
    ]
    return card(words.ANOMALY_CARD, parts)


def _branches(item: AnomalyItem) -> str:
    if not item.branches:
        return ""
    rows = []
    for name, p_value in item.branches.items():
        bar = Bar(words.BRANCHES.get(name, name), 1.0 - p_value, 1.0 - UNUSUAL)
        said = html.escape(f"{bar.label} {words.BRANCH_P.format(p=_p(p_value))}")
        rows.append(
            f'<li class="{"found" if bar.is_present else "bar"}" aria-label="{said}" title="{said}">'
            f'<span class="name">{html.escape(bar.label)}</span>'
            f'<span class="track" aria-hidden="true">{track_html(bar)}</span>'
            f'<span class="number">{_p(p_value)}</span></li>'
        )
    note = f'<p class="soft">{html.escape(words.BRANCHES_NOTE)}</p>'
    return f'<h3>{html.escape(words.BRANCHES_TITLE)}</h3><ul class="bars wide">{"".join(rows)}</ul>{note}'


def _p(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def build_anomaly(panel: AnomalyPanel, shelf: Shelf, film: FilmColumn, page: Any) -> None:
    def ask(shown: OpenFilm | None, adapter: str | None) -> tuple[str, str]:
        found = panel.judge(shown, adapter)
        return found.figure, found.card

    question = Question(words.ANOMALY_INTRO, words.ANOMALY_LOOK, "detector", "compare", "strangeness", "strange-film")
    build_question(question, ask, shelf, film, page)
