"""Labels of one's own: the film scored against any words, in one of the server's ways."""

from __future__ import annotations

import html
from typing import Any, cast

import gradio as gr

from app import words
from app.bars import Bar, bars_html
from app.events import QUIET, WAITING, notice, notice_box
from app.evidence import card, provenance_html, refusal_card
from app.film import OpenFilm
from app.panels.film import FilmColumn
from foundation.errors import InvalidRequest, VesaliusError
from serving.client import Client
from serving.schemas.zero_shot import Scoring


class ZeroShotPanel:
    def __init__(self, client: Client) -> None:
        self._client = client

    def score(self, film: OpenFilm | None, labels: str, scoring: str) -> str:
        """The card of scores, in the order of the labels. Raises a VesaliusError whose sentence is for the person."""
        wanted = list(dict.fromkeys(line.strip() for line in labels.splitlines() if line.strip()))
        if film is None:
            raise InvalidRequest(words.NO_FILM)
        if not wanted:
            raise InvalidRequest(words.NO_LABELS)
        (item,) = self._client.zero_shot([film.picture()], wanted, scoring=cast(Scoring, scoring)).data
        if not item.assessed:
            return refusal_card(item.looks_like, item.provenance, item.timings)
        bars = bars_html([Bar(one.label, one.score, 0.5 if scoring == "pairwise" else None) for one in item.scores])
        notes = (words.SCORES_NOTE, words.PAIRWISE_NOTE) if scoring == "pairwise" else (words.SCORES_NOTE,)
        note = f'<p class="soft">{html.escape(" ".join(notes))}</p>'
        return card(words.SCORINGS[scoring], [bars, note, provenance_html(item.provenance, item.timings)])


def build_zero_shot(panel: ZeroShotPanel, film: FilmColumn) -> None:
    gr.HTML(f"<p>{words.LABELS_INTRO}</p>", elem_classes="note")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            labels = gr.Textbox(words.LABELS_START, label=words.LABELS, lines=6, max_lines=14, elem_id="labels")
            choices = [(shown, name) for name, shown in words.SCORINGS.items()]
            scoring = gr.Radio(choices, value="pairwise", label=words.SCORING)
            button = gr.Button(words.SCORE, variant="primary", elem_id="score")
            said = notice_box()
        with gr.Column(scale=1, min_width=260):
            scores = gr.HTML(elem_id="scores")

    def score(shown: OpenFilm | None, wanted: str, way: str) -> tuple[Any, ...]:
        try:
            return panel.score(shown, wanted, way), notice("")
        except VesaliusError as error:
            return "", notice(error.message)

    button.click(score, [film.film, labels, scoring], [scores, said], **WAITING)
    for change in (*film.changes, film.chosen):
        change.then(lambda: "", None, scores, **QUIET)  # they were about another picture
