"""Regions of the film: outlined by name, by words, or by what a person clicks on; each with confidence, area and a mask."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

from app import words
from app.events import QUIET, WAITING, notice, notice_box
from app.figure import Layer, layered_html
from app.film import OpenFilm
from app.marks import Marks, film_place, marks_html
from app.outline import color_of, outlined, read_mask
from app.panels.film import KEPT_S, FilmColumn, FilmDesk
from app.region_card import file_name, region_card
from app.shelf import Choice, Shelf, build_about, build_choice, build_intro, wire_choice
from foundation.errors import InvalidRequest, VesaliusError
from serving.client import Client
from serving.schemas.models import Model
from serving.schemas.segment import SegmentItem

MaskKind = Literal["application/dicom", "application/x-nifti"]
MASK_KINDS: dict[MaskKind, tuple[str, str]] = {
    "application/dicom": (words.SAVE_DICOM, ".seg.dcm"),
    "application/x-nifti": (words.SAVE_NIFTI, ".nii"),
}

# A click anywhere on the picture, as shares of its sides: the picture's own size on the screen does not matter.
TELL_CLICKS = """
element.addEventListener('click', (event) => {
  const frame = element.querySelector('.frame.markable');
  if (!frame || !frame.contains(event.target)) return;
  const box = frame.getBoundingClientRect();
  trigger('select', { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height });
});
"""
SAVE = "watch('value', () => { const link = element.querySelector('a[download]'); if (link) link.click(); });"


@dataclass(frozen=True)
class Outlines:
    """An answer of the server, and what it was asked about."""

    item: SegmentItem
    view: tuple[Any, ...]
    adapter: str
    labels: tuple[str, ...]
    marks: Marks


class RegionsPanel:
    def __init__(self, client: Client, desk: FilmDesk) -> None:
        self._client, self._desk = client, desk

    def find(self, film: OpenFilm | None, adapter: str | None, classes: Sequence[str], other: str, marks: Marks) -> Outlines:
        """other: words of a person's own, one a line. Raises a VesaliusError whose sentence is for the person."""
        if film is None:
            raise InvalidRequest(words.NO_FILM)
        if not adapter:
            raise InvalidRequest(words.NO_CHOICE)
        labels = tuple(dict.fromkeys([*classes, *(line.strip() for line in other.splitlines() if line.strip())]))
        if not labels:
            raise InvalidRequest(words.NOTHING_CHOSEN)
        asked = self._client.segment(
            [film.picture()], adapter, labels=labels, points=marks.points, boxes=marks.boxes, mask_format="png"
        )
        return Outlines(asked.data[0], film.view, adapter, labels, marks)

    def mask_file(self, film: OpenFilm, found: Outlines, kind: MaskKind) -> bytes:
        """The same outlines as a file; raises what the client raises."""
        marks = found.marks
        return self._client.mask_file(
            film.picture(), found.adapter, kind, labels=found.labels, points=marks.points, boxes=marks.boxes
        )

    def click(self, film: OpenFilm | None, marks: Marks, kind: str, x: float, y: float) -> Marks:
        """The marks with one more. x, y: where in the shown square, 0 to 1. Raises InvalidRequest where it marks nothing."""
        if film is None:
            raise InvalidRequest(words.NO_FILM)
        held = marks if marks.view == film.view else Marks(view=film.view)
        return held.click(kind, *film_place(x, y, film, self._desk.contract))

    def figure(self, film: OpenFilm | None, marks: Marks, found: Outlines | None) -> str:
        """The film with outlines, where they are of this very view, and marks. "" without a film."""
        if film is None:
            return ""
        contract = self._desk.contract
        layers = []
        if found is not None and found.view == film.view:
            for index, mask in enumerate(found.item.masks):
                if mask.found and mask.png:
                    drawn = outlined(read_mask(mask.png), color_of(index), contract)
                    layers.append(Layer(drawn, words.REGION_LAYER.format(label=mask.label)))
        shown = marks if marks.view == film.view else Marks()
        lines = [words.MARKABLE if shown.is_empty else words.MARKED.format(**shown.counts)]
        lines += [words.SECOND_CORNER] if shown.corner is not None else []
        caption = [f"<p>{html.escape(line)}</p>" for line in lines]
        return layered_html(film, contract, layers, caption, marks_html(shown, film, contract))


def first_classes(model: Model) -> tuple[list[str], list[str]]:
    """(all there is to outline, what is chosen at first). Where classes have names together, the first such name's
    classes alone, since the classes of two such names may lie over one another.
    """
    told = model.vesalius
    parts = next(iter(told.unions.values()), told.labels)
    return [*told.labels, *told.unions], list(parts)


@dataclass(frozen=True)
class _Parts:
    choice: Choice
    classes: Any
    other: Any
    kind: Any
    figure: Any
    result: Any
    notice: Any
    marks: Any
    found: Any
    files: tuple[Any, ...]
    saved: Any


def build_regions(panel: RegionsPanel, shelf: Shelf, film: FilmColumn, page: Any) -> None:
    intro, about = build_intro(), build_about()
    with gr.Column(visible=False) as body, gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            figure = gr.HTML(js_on_load=TELL_CLICKS, elem_id="regions-film")
            kind = gr.Radio([(said, name) for name, said in words.MARKS.items()], value="inside", label=words.MARK_BY)
            clear = gr.Button(words.CLEAR_MARKS, size="sm", elem_id="clear-marks")
        with gr.Column(scale=1, min_width=260):
            choice = build_choice(intro, about, "segmenter")
            classes = gr.CheckboxGroup([], label=words.CLASSES, elem_id="classes")
            other = gr.Textbox(
                label=words.OTHER_WORDS, info=words.OTHER_WORDS_HINT, lines=1, max_lines=4, elem_id="other-words"
            )
            find = gr.Button(words.FIND, variant="primary", elem_id="find")
            said = notice_box()
            result = gr.HTML(elem_id="regions")
            with gr.Row(elem_classes="suggest"):
                files = tuple(gr.Button(title, size="sm", min_width=90, visible=False) for title, _ in MASK_KINDS.values())
            saved = gr.HTML(js_on_load=SAVE, elem_classes="note", elem_id="saved")
            about.render()
    marks, found = gr.State(Marks(), time_to_live=KEPT_S), gr.State(None, time_to_live=KEPT_S)
    parts = _Parts(choice, classes, other, kind, figure, result, said, marks, found, files, saved)
    wire_choice(shelf, choice, page, body, words.REGIONS_INTRO)
    choice.chosen.change(_classes_of(shelf), choice.chosen, classes, **QUIET)
    _wire_finding(panel, film, parts, find)
    _wire_fresh(panel, film, parts, clear)
    for file, mask_kind in zip(files, MASK_KINDS, strict=True):
        file.click(_saver(panel, mask_kind), [film.film, found], [saved, said], **WAITING)


def _classes_of(shelf: Shelf) -> Any:
    def classes_of(adapter: str | None) -> Any:
        try:
            known, chosen = first_classes(shelf.named(adapter))
        except VesaliusError:  # said when it is asked
            return gr.skip()
        return gr.update(choices=known, value=chosen)

    return classes_of


def _wire_finding(panel: RegionsPanel, film: FilmColumn, parts: _Parts, find: Any) -> None:
    asked = [film.film, parts.choice.dropdown, parts.classes, parts.other, parts.marks]
    answered = [parts.found, parts.figure, parts.result, parts.notice, *parts.files, parts.saved]

    def outline(shown: OpenFilm | None, adapter: str | None, classes: list[str], other: str, marks: Marks) -> tuple[Any, ...]:
        try:
            found = panel.find(shown, adapter, classes, other, marks if shown and marks.view == shown.view else Marks())
            figure = panel.figure(shown, marks, found)
        except VesaliusError as error:
            return gr.skip(), gr.skip(), gr.skip(), notice(error.message), *(gr.skip() for _ in MASK_KINDS), gr.skip()
        assert shown is not None
        card = region_card(found.item, shown, found.marks)
        return found, figure, card, notice(""), *_offered_files(shown, found), ""

    def outline_marked(
        shown: OpenFilm | None, adapter: str | None, classes: list[str], other: str, marks: Marks, found: Outlines | None
    ) -> tuple[Any, ...]:
        """After a click. Half a box is no mark yet, and a click that marked nothing leaves its sentence standing."""
        if marks.is_empty or marks.corner is not None or (found is not None and found.marks == marks):
            return tuple(gr.skip() for _ in answered)
        return outline(shown, adapter, classes, other, marks)

    def mark(shown: OpenFilm | None, marks: Marks, found: Outlines | None, kind: str, event: gr.EventData) -> tuple[Any, ...]:
        try:
            marked = panel.click(shown, marks, kind, float(event._data["x"]), float(event._data["y"]))
            return marked, panel.figure(shown, marked, found), notice("")
        except VesaliusError as error:
            return gr.skip(), gr.skip(), notice(error.message)

    mark.__annotations__["event"] = gr.EventData  # Gradio recognises the event by this type, not by its name
    find.click(outline, asked, answered, **WAITING)
    clicked = parts.figure.select(
        mark,
        [film.film, parts.marks, parts.found, parts.kind],
        [parts.marks, parts.figure, parts.notice],
        trigger_mode="multiple",
        concurrency_limit=1,  # one after the other, so that no mark is lost
        **QUIET,
    )
    clicked.success(outline_marked, [*asked, parts.found], answered, trigger_mode="always_last", **WAITING)


def _wire_fresh(panel: RegionsPanel, film: FilmColumn, parts: _Parts, clear: Any) -> None:
    """Without marks and outlines: after `clear`, and for another film, whose outlines these are not."""

    def fresh(shown: OpenFilm | None, marks: Marks, found: Outlines | None) -> tuple[Any, ...]:
        empty = Marks()
        hidden = (gr.update(visible=False) for _ in MASK_KINDS)
        try:
            figure = panel.figure(shown, empty, None)
        except VesaliusError as error:
            return empty, None, gr.skip(), "", notice(error.message), *hidden, ""
        return empty, None, figure, "", notice(""), *hidden, ""

    def follow(shown: OpenFilm | None, marks: Marks, found: Outlines | None) -> tuple[Any, ...]:
        """A film that could not be opened changes nothing."""
        is_same = shown is not None and shown.view in (marks.view, found.view if found is not None else ())
        return tuple(gr.skip() for _ in outputs) if is_same else fresh(shown, marks, found)

    outputs = [parts.marks, parts.found, parts.figure, parts.result, parts.notice, *parts.files, parts.saved]
    held = [film.film, parts.marks, parts.found]
    clear.click(fresh, held, outputs, **QUIET)
    parts.choice.chosen.change(fresh, held, outputs, **QUIET)  # outlines by another adapter
    for change in (*film.changes, film.chosen):
        change.then(follow, held, outputs, **QUIET)


def _offered_files(film: OpenFilm, found: Outlines) -> tuple[Any, ...]:
    """A DICOM segmentation belongs to a DICOM film."""
    is_dicom = film.image.source_format == "dicom"
    return tuple(gr.update(visible=bool(found.item.masks) and (is_dicom or kind != "application/dicom")) for kind in MASK_KINDS)


def _saver(panel: RegionsPanel, kind: MaskKind) -> Any:
    def save(shown: OpenFilm | None, found: Outlines | None) -> tuple[Any, ...]:
        """A link that holds the whole file, which the page follows by itself: nothing is kept to be fetched."""
        try:
            if shown is None or found is None or found.view != shown.view:
                raise InvalidRequest(words.NO_FILM)
            data = panel.mask_file(shown, found, kind)
        except VesaliusError as error:
            return "", notice(error.message)
        name = file_name(shown, found.adapter, MASK_KINDS[kind][1])
        link = f'<a href="data:{kind};base64,{base64.b64encode(data).decode("ascii")}" download="{name}">{name}</a>'
        return f"<p>{html.escape(words.SAVED).format(name=link)}</p>", notice("")

    return save
