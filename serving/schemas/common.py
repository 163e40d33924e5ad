"""The parts that several routes share: a film as sent, and what every answer says about its making."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator

from foundation.errors import VesaliusError
from serving.http_errors import error_object
from serving.messages import Film
from serving.schemas.parsing import Answer, Body, field_error

WindowPair = tuple[float, float]
LEAST_INTEGER, MOST_INTEGER = -(1 << 63), (1 << 63) - 1  # what msgpack carries to other processes
SliceIndex = Annotated[int, Field(ge=0, le=MOST_INTEGER)]


def _check_window(window: WindowPair | None) -> WindowPair | None:
    if window is not None and window[1] <= 0:
        raise field_error("", "must be [center, width] with a width above zero.")
    return window


class FilmInput(Body):
    """A film: a data URI or bare base64 in `data`, and which slice and grey window of it to show.

    In JSON a plain string stands for {"data": string}; the files of a multipart request arrive as bytes.
    """

    data: str | bytes
    slice_index: SliceIndex | None = None
    window: WindowPair | None = Field(default=None, description="[center, width] in the film's own units")

    @field_validator("window")
    @classmethod
    def _window_is_open(cls, window: WindowPair | None) -> WindowPair | None:
        return _check_window(window)


def _as_film(value: Any) -> Any:
    return {"data": value} if isinstance(value, str) else value


def _as_films(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Films = Annotated[list[Annotated[FilmInput, BeforeValidator(_as_film)]], BeforeValidator(_as_films)]
Strings = Annotated[list[str], BeforeValidator(_as_list)]


class ImageBody(Body):
    """Fields of every route that takes films. `slice_index` and `window` hold for films that name none of their own."""

    images: Films = Field(default_factory=list, description="data URIs or bare base64; multipart: parts named 'file'")
    slice_index: SliceIndex | None = None
    window: WindowPair | None = None
    include_film: bool = Field(default=False, description="also return the film as the model saw it, as a PNG data URI")

    @field_validator("window")
    @classmethod
    def _window_is_open(cls, window: WindowPair | None) -> WindowPair | None:
        return _check_window(window)


class Provenance(Answer):
    """What made a number: the model, the adapter, the film's digest, the preprocessing's version."""

    model: str = ""
    adapter: str | None = None
    pixels: str | None = None
    preprocessing: str | None = None

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Self:
        found = {key: item for key, item in dict(value.get("provenance") or {}).items() if key in cls.model_fields}
        return cls.model_validate({key: None if item is None else str(item) for key, item in found.items()})


class Timings(Answer):
    """Milliseconds: waiting for the device, decoding the film, computing."""

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    compute_ms: float = 0.0


class FilmReport(Answer):
    """What reading a film found out. `png` is the film as the model saw it, when asked for.

    height, width: of the slice as it was sent, in whose pixels points, boxes, masks and heat maps are told.
    """

    digest: str
    modality: str = ""
    view: str = ""
    source_format: str = ""
    slices: int = 1
    slice_index: int = 0
    height: int = 0
    width: int = 0
    spacing_mm: tuple[float, float] | None = None  # (row, column)
    notes: list[str] = Field(default_factory=list)
    png: str | None = None

    @classmethod
    def from_film(cls, film: Film, png: str | None = None) -> Self:
        return cls(
            digest=film.digest,
            modality=film.modality,
            view=film.view,
            source_format=film.source_format,
            slices=film.slices,
            slice_index=film.slice_index,
            height=film.height,
            width=film.width,
            spacing_mm=film.spacing_mm,
            notes=list(film.notes),
            png=png,
        )


class ErrorReport(Answer):
    """OpenAI's error object, also used for one item of many."""

    message: str
    type: str
    param: str | None = None
    code: str

    @classmethod
    def from_error(cls, error: VesaliusError) -> Self:
        return cls(**error_object(error))


class ErrorAnswer(Answer):
    error: ErrorReport


class Item(Answer):
    """One film's answer among several: a result, or the error that befell this film alone."""

    index: int
    error: ErrorReport | None = None
    assessed: bool = True
    looks_like: str = ""
    film: FilmReport | None = None
    provenance: Provenance | None = None
    timings: Timings | None = None
