"""POST /v1/segment: masks by a class's name, by points or by boxes, in each film's own pixels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serving.schemas.common import FilmInput, ImageBody, Item, Strings
from serving.schemas.parsing import Answer, Body

MaskFormat = Literal["rle", "png"]


class PointMark(Body):
    """A place in the film, in its own pixels from the upper left corner. inside: false marks what is not meant."""

    row: float = Field(ge=0)
    column: float = Field(ge=0)
    inside: bool = True


class BoxMark(Body):
    """A region of the film, in its own pixels; the lower right corner is not part of it."""

    top: float = Field(ge=0)
    left: float = Field(ge=0)
    bottom: float = Field(gt=0)
    right: float = Field(gt=0)


def _as_marks(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Points = Annotated[list[PointMark], BeforeValidator(_as_marks)]
Boxes = Annotated[list[BoxMark], BeforeValidator(_as_marks)]


class SegmentFilm(FilmInput):
    """A film with marks of its own."""

    points: Points | None = None
    boxes: Boxes | None = None


def _as_film(value: Any) -> Any:
    return {"data": value} if isinstance(value, str) else value


def _as_films(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


SegmentFilms = Annotated[list[Annotated[SegmentFilm, BeforeValidator(_as_film)]], BeforeValidator(_as_films)]


class SegmentBody(ImageBody):
    """`model` names the adapter; `labels` which of its classes are asked for (all where none is named).

    A label that is none of its classes is read as free words, and sought by what they mean; that is not calibrated.

    `points` and `boxes` hold for films that have none of their own. They choose among the parts that the labels draw, and
    correct them, one point after another in their order: ask for one label to correct that one alone. With
    `Accept: application/dicom` or `application/x-nifti` one film is answered by a file instead of JSON.
    """

    images: SegmentFilms = Field(  # type: ignore[assignment]  # pydantic reads the narrower type
        default_factory=list, description="as elsewhere; each may have its own points and boxes"
    )
    model: str
    labels: Strings | None = None
    points: Points = Field(default_factory=list)
    boxes: Boxes = Field(default_factory=list)
    mask_format: MaskFormat = Field(default="rle", description="COCO run lengths, or a one-bit PNG as a data URI")


class RunLengths(Answer):
    """COCO's run lengths: size [height, width], counts in COCO's compressed text."""

    size: tuple[int, int]
    counts: str


class ClassMask(Answer):
    """One class. `found` false: there is nothing of it here, and the mask is empty. by_words: it is none of the adapter's
    classes but was sought by its words.

    presence: the probability that there is any of it, beside the threshold it is held against. area_mm2: where the
    film's pixel spacing is known.
    """

    label: str
    found: bool
    by_words: bool = False
    presence: float
    threshold: float
    area_pixels: int = 0
    area_mm2: float | None = None
    rle: RunLengths | None = None
    png: str | None = None


class SegmentItem(Item):
    """`masks` in the order of the labels asked for; empty when the film was not assessed or failed.

    found: the classes there is something of; nothing_here: whether that is none of them.
    """

    masks: list[ClassMask] = Field(default_factory=list)
    found: list[str] = Field(default_factory=list)
    nothing_here: bool = False


class SegmentAnswer(Answer):
    object: Literal["segmentation"] = "segmentation"
    model: str
    data: list[SegmentItem]
