"""The film's column: drop or choose a film, see it as the model saw it, leaf through slices, lay a heat map over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app import words
from app.events import QUIET, WAITING, notice, notice_box
from app.examples import EXAMPLES, thumbnails
from app.figure import figure_html
from app.film import OpenFilm
from app.reading import Reading
from foundation.errors import EngineUnavailable, FilmUnreadable, VesaliusError
from foundation.preprocess import InputContract
from serving.client import Client

KEPT_S = 3600.0  # how long a session's film is held after its last use


class FilmDesk:
    """What the film's controls do. `contract`: how the served model wants its films."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._contract: InputContract | None = None

    @property
    def contract(self) -> InputContract:
        """Asked of the server once. Raises what the client raises where it cannot be had."""
        if self._contract is None:
            preparing = self._client.models()[0].vesalius.preprocessing
            if preparing is None:
                raise EngineUnavailable(words.OLD_SERVER)
            self._contract = InputContract(**preparing.model_dump())
        return self._contract

    def open(self, path: str | None) -> OpenFilm:
        """The dropped file, which does not stay on disk. Raises a FilmError; its sentence is for the person."""
        if path is None:
            raise FilmUnreadable(words.UNREAD)
        file = Path(path)
        try:
            data = file.read_bytes()
            file.unlink()
        except OSError:
            raise FilmUnreadable(words.UNREAD) from None
        film = OpenFilm.read(data, file.name)
        film.pixels(self.contract)  # a film that cannot be shown is refused now, not at the first question
        return film

    def example(self, index: int) -> OpenFilm:
        return EXAMPLES[index].film(self.contract.size)

    def figure(self, film: OpenFilm | None, reading: Reading | None = None, chosen: str | None = None) -> str:
        """The film, with the chosen finding's map over it where the reading is of this very view."""
        if film is None:
            return ""
        is_current = reading is not None and reading.view == film.view
        heat = reading.map_of(chosen or "") if reading is not None and is_current else None
        return figure_html(film, self.contract, heat)


@dataclass(frozen=True)
class FilmColumn:
    """film: the state of OpenFilm or None; reading: that of Reading or None. changes: events after which both may differ.

    chosen: the event of an example chosen, which shall be answered without another click.
    """

    film: Any
    reading: Any
    figure: Any
    chooser: Any
    changes: tuple[Any, ...]
    chosen: Any
    draw: Callable[..., Any]


@dataclass(frozen=True)
class _Parts:
    film: Any
    reading: Any
    notice: Any
    figure: Any
    slice: Any
    window: Any
    chooser: Any
    examples: Any


def build_film(desk: FilmDesk) -> FilmColumn:
    upload = gr.File(label=words.DROP, type="filepath", height=84, elem_id="film-drop")
    parts = _Parts(
        film=gr.State(None, time_to_live=KEPT_S),
        reading=gr.State(None, time_to_live=KEPT_S),
        notice=notice_box(),
        figure=gr.HTML(elem_id="film", visible=False),
        slice=gr.Slider(1, 2, value=1, step=1, visible=False, elem_id="slice"),
        window=gr.Dropdown([], label=words.WINDOW, visible=False, elem_id="window"),
        chooser=gr.Dropdown([], label=words.MAP, visible=False, elem_id="map"),
        examples=gr.Accordion(words.EXAMPLES, open=True, elem_id="examples"),
    )
    with parts.examples:
        gr.HTML(f"<p>{words.EXAMPLES_NOTE}</p>", elem_classes="note")
        gallery = _gallery()
    outputs = [getattr(parts, name) for name in parts.__dataclass_fields__]

    def take(path: str | None) -> tuple[Any, ...]:
        return None, *_opened(desk, lambda: desk.open(path))  # None: the drop zone is free for the next film

    def choose(event: gr.SelectData) -> tuple[Any, ...]:
        return _opened(desk, lambda: desk.example(int(event.index)))

    choose.__annotations__["event"] = gr.SelectData  # Gradio recognises the event by this type, not by its name
    dropped = upload.upload(take, upload, [upload, *outputs], concurrency_limit=2, **WAITING)
    chosen = gallery.select(choose, None, outputs, **QUIET)
    turned = gr.on(
        [parts.slice.input, parts.window.input],
        _turner(desk),
        [parts.film, parts.slice, parts.window],
        [parts.film, parts.reading, parts.figure, parts.chooser],
        trigger_mode="always_last",
        **QUIET,
    )
    parts.chooser.input(desk.figure, [parts.film, parts.reading, parts.chooser], parts.figure, **QUIET)
    return FilmColumn(parts.film, parts.reading, parts.figure, parts.chooser, (dropped, turned), chosen, desk.figure)


def _gallery() -> Any:
    return gr.Gallery(
        [*thumbnails()],
        format="png",
        columns=3,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        show_label=False,
        buttons=[],
        elem_id="gallery",
    )


def _opened(desk: FilmDesk, opening: Callable[[], OpenFilm]) -> tuple[Any, ...]:
    """Every part after a film was opened; where it cannot be, all stays as it was and the notice says why."""
    try:
        film = opening()
        figure = desk.figure(film)
    except VesaliusError as error:
        return gr.skip(), gr.skip(), notice(error.message), *(gr.skip() for _ in range(5))
    last, windows = film.image.slices, film.windows()
    label = words.SLICE.format(last=last)
    return (
        film,
        None,
        notice(""),
        gr.update(value=figure, visible=True),
        gr.update(maximum=max(2, last), value=film.shown_slice + 1, visible=last > 1, label=label),
        gr.update(choices=list(windows), value=next(iter(windows), None), visible=len(windows) > 1),
        map_chooser(None),
        gr.update(open=False),
    )


def _turner(desk: FilmDesk) -> Callable[..., tuple[Any, ...]]:
    def turn(film: OpenFilm | None, number: float, name: str | None) -> tuple[Any, ...]:
        """Another slice or window: another picture, which nobody has asked about yet."""
        if film is None:
            return None, None, gr.skip(), map_chooser(None)
        index = int(number) - 1 if film.image.is_volume else None
        shown = film.at(slice_index=index, window=film.windows().get(name or ""))
        return shown, None, desk.figure(shown), map_chooser(None)

    return turn


def map_chooser(reading: Reading | None) -> Any:
    """The list of findings to lay over the film; hidden where there is no map."""
    choices = reading.map_choices() if reading is not None else []
    value = reading.first_map() if reading is not None else ""
    return gr.update(choices=[(words.NO_MAP, ""), *choices], value=value, visible=bool(choices))
