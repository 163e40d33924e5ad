"""A panel that asks an adapter one thing about the open film: a choice, a button, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.events import QUIET, WAITING, notice, notice_box
from app.film import OpenFilm
from app.panels.film import FilmColumn
from app.shelf import Shelf, build_about, build_choice, build_intro, wire_choice
from foundation.errors import VesaliusError

Ask = Callable[[OpenFilm | None, str | None], tuple[str, ...]]
"""From the film and the adapter's name to HTML, one for each place of the question. Raises a VesaliusError for the person."""


@dataclass(frozen=True)
class Question:
    """Words of the controls, and the ids by which the page's style knows them. figure: "" where no picture is shown."""

    intro: str
    button: str
    choice_id: str
    button_id: str
    result_id: str
    figure_id: str = ""


def build_question(question: Question, ask: Ask, shelf: Shelf, film: FilmColumn, page: Any) -> None:
    """page: the Blocks, whose load asks which adapters are served. What is shown goes with its film and its adapter."""
    intro, about = build_intro(), build_about()
    with gr.Column(visible=False) as body, gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            choice = build_choice(intro, about, question.choice_id)
            button = gr.Button(question.button, variant="primary", elem_id=question.button_id)
            said = notice_box()
            figures = [gr.HTML(elem_id=question.figure_id)] if question.figure_id else []
        with gr.Column(scale=1, min_width=260):
            places = [*figures, gr.HTML(elem_id=question.result_id)]
            about.render()
    wire_choice(shelf, choice, page, body, question.intro)

    def read(shown: OpenFilm | None, adapter: str | None) -> tuple[Any, ...]:
        try:
            return (*ask(shown, adapter), notice(""))
        except VesaliusError as error:
            return (*blank(), notice(error.message))

    def blank() -> tuple[str, ...]:
        return ("",) * len(places)

    def clear() -> tuple[Any, ...]:
        return (*blank(), notice(""))

    shows = [*places, said]
    button.click(read, [film.film, choice.dropdown], shows, **WAITING)
    choice.chosen.change(clear, None, shows, **QUIET)  # it was by another adapter
    for change in (*film.changes, film.chosen):
        change.then(clear, None, shows, **QUIET)  # it was about another picture
