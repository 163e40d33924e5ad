"""Findings read by a served classification adapter: calibrated probabilities and thresholds, or why there are none."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from app import words
from app.bars import Bar, bars_html
from app.events import QUIET, WAITING, notice, notice_box
from app.evidence import card, provenance_html, refusal_card
from app.film import OpenFilm
from app.panels.film import FilmColumn
from foundation.errors import InvalidRequest, VesaliusError
from serving.client import Client


class FindingsPanel:
    def __init__(self, client: Client) -> None:
        self._client = client

    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that can classify; () where there are none or the server cannot be reached."""
        try:
            listed = self._client.models()
        except VesaliusError:  # said where a question is asked; a page that only loads needs no error
            return ()
        return tuple(model.id for model in listed if "classify" in model.vesalius.capabilities)

    def predict(self, film: OpenFilm | None, adapter: str | None) -> str:
        """The card of probabilities. Raises a VesaliusError whose sentence is for the person."""
        if not adapter:
            raise InvalidRequest(words.NO_ADAPTER)
        if film is None:
            raise InvalidRequest(words.NO_FILM)
        (item,) = self._client.classify([film.picture()], adapter).data
        if not item.assessed:
            return refusal_card(item.looks_like, item.provenance, item.timings)
        found = sorted(item.labels, key=lambda one: -one.probability)
        bars = bars_html([Bar(one.label, one.probability, one.threshold) for one in found])
        note = f'<p class="soft">{html.escape(words.CALIBRATED)}</p>'
        return card(adapter, [bars, note, provenance_html(item.provenance, item.timings)])


def build_findings(panel: FindingsPanel, film: FilmColumn, page: Any) -> None:
    """page: the Blocks, whose load asks which adapters are served."""
    intro = gr.HTML(f"<p>{words.NO_ADAPTER}</p>", elem_classes="note")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            adapter = gr.Dropdown([], label=words.ADAPTER, visible=False, elem_id="adapter")
            button = gr.Button(words.PREDICT, variant="primary", visible=False, elem_id="predict")
            said = notice_box()
        with gr.Column(scale=1, min_width=260):
            result = gr.HTML(elem_id="predicted")

    def predict(shown: OpenFilm | None, name: str | None) -> tuple[Any, ...]:
        try:
            return panel.predict(shown, name), notice("")
        except VesaliusError as error:
            return "", notice(error.message)

    def offer() -> tuple[Any, ...]:
        names = panel.adapters()
        said_first = words.FINDINGS_INTRO if names else words.NO_ADAPTER
        dropdown = gr.update(choices=list(names), value=names[0] if names else None, visible=bool(names))
        return f"<p>{html.escape(said_first)}</p>", dropdown, gr.update(visible=bool(names))

    button.click(predict, [film.film, adapter], [result, said], **WAITING)
    page.load(offer, None, [intro, adapter, button], **QUIET)
    for change in (*film.changes, film.chosen):
        change.then(lambda: "", None, result, **QUIET)  # they were about another picture
