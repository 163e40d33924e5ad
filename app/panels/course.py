"""One outcome from the film, a note and values from the chart: a form made from what the adapter's card says it reads."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import gradio as gr

from app import words
from app.chart import read_chart, title_of
from app.course_card import course_card
from app.events import QUIET, WAITING, notice, notice_box
from app.film import OpenFilm
from app.panels.film import FilmColumn
from app.shelf import Shelf, build_about, build_choice, build_intro, wire_choice
from foundation.errors import InvalidRequest, VesaliusError
from serving.client import Client
from serving.schemas.models import Model, TableField

FILM, NOTE = "film", "note"


class CoursePanel:
    def __init__(self, client: Client) -> None:
        self._client = client

    def estimate(self, film: OpenFilm | None, model: Model, note: str, typed: Sequence[str | None]) -> str:
        """The card. typed: in the order of the model's fields. Raises a VesaliusError whose sentence is for the person."""
        fields = model.vesalius.fields
        cells = read_chart(fields, typed)
        if film is None and not note.strip() and not cells:
            raise InvalidRequest(words.NOTHING_GIVEN)
        films = [film.picture()] if film is not None else []
        answer = self._client.fuse(model.id, films, text=note.strip() or None, tabular=cells)
        return course_card(answer, fields, cells)


def build_course(panel: CoursePanel, shelf: Shelf, film: FilmColumn, page: Any) -> None:
    intro, about = build_intro(), build_about()
    with gr.Column(visible=False) as body, gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            choice = build_choice(intro, about, "fuser")
            form = gr.Column()
        with gr.Column(scale=1, min_width=260):
            result = gr.HTML(elem_id="course")
            about.render()
    wire_choice(shelf, choice, page, body, words.COURSE_INTRO)
    with form:

        @gr.render(inputs=choice.chosen, triggers=[choice.chosen.change], show_progress="hidden")
        def draw_form(adapter: str | None) -> None:
            try:
                model = shelf.named(adapter)
            except VesaliusError as error:
                gr.HTML(f'<p role="alert">{html.escape(error.message)}</p>', elem_classes="notice")
                return
            _build_form(panel, model, film, result)

    choice.chosen.change(lambda: "", None, result, **QUIET)  # it was by another adapter
    for change in (*film.changes, film.chosen):
        change.then(lambda: "", None, result, **QUIET)  # it was about another picture


def _build_form(panel: CoursePanel, model: Model, film: FilmColumn, result: Any) -> None:
    told = model.vesalius
    use_film = gr.Checkbox(
        value=FILM in told.modalities, label=words.WITH_FILM, visible=FILM in told.modalities, elem_id="use-film"
    )
    gr.HTML(f"<p>{html.escape(words.FIELDS_NOTE)}</p>", elem_classes="note", visible=bool(told.fields))
    inputs = []
    for group, fields in groupby(told.fields, key=lambda field: field.modality):
        gr.HTML(f"<h3>{html.escape(group)}</h3>", elem_classes="group")
        with gr.Row(elem_classes="chart"):
            inputs += [_input_of(field) for field in fields]
    note = gr.Textbox(
        label=words.NOTE, info=words.NOTE_HINT, lines=3, max_lines=8, visible=NOTE in told.modalities, elem_id="note"
    )
    button = gr.Button(words.ESTIMATE, variant="primary", elem_id="estimate")
    said = notice_box()

    def estimate(shown: OpenFilm | None, is_used: bool, text: str | None, *typed: str | None) -> tuple[Any, ...]:
        try:
            return panel.estimate(shown if is_used else None, model, text or "", typed), notice("")
        except VesaliusError as error:
            return "", notice(error.message)

    button.click(estimate, [film.film, use_film, note, *inputs], [result, said], **WAITING)


def _input_of(field: TableField) -> Any:
    name = title_of(field)
    if field.kind == "category":
        return gr.Dropdown(
            [(words.MISSING, ""), *((one, one) for one in field.categories)], value="", label=name, min_width=160
        )
    seen = None
    if field.seen_low is not None and field.seen_high is not None:
        seen = words.FIELD_SEEN.format(low=f"{field.seen_low:g}", high=f"{field.seen_high:g}")
    label = words.FIELD_UNIT.format(name=name, unit=field.unit) if field.unit else name
    return gr.Textbox(label=label, info=seen, placeholder=words.MISSING, max_lines=1, max_length=40, min_width=160)
