"""Marks a person sets on the shown film: where a click lies in the film as it was sent, and how marks are drawn.

click in the shown square (shares x, y)  <-- placement -->  row, column in the film's own pixels, as the API takes them
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from app import words
from app.film import OpenFilm
from foundation.errors import InvalidRequest
from foundation.preprocess import InputContract, placement
from serving.schemas.segment import BoxMark, PointMark


@dataclass(frozen=True)
class Marks:
    """corner: (row, column) of a box begun. view: `OpenFilm.view` of the film they are on."""

    points: tuple[PointMark, ...] = ()
    boxes: tuple[BoxMark, ...] = ()
    corner: tuple[float, float] | None = None
    view: tuple[Any, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.points and not self.boxes

    @property
    def counts(self) -> dict[str, int]:
        inside = sum(point.inside for point in self.points)
        return {"inside": inside, "outside": len(self.points) - inside, "boxes": len(self.boxes)}

    def click(self, kind: str, row: float, column: float) -> Marks:
        """kind: a key of words.MARKS. Raises InvalidRequest where two corners make no box."""
        if kind != "box":
            return replace(self, points=(*self.points, PointMark(row=row, column=column, inside=kind == "inside")), corner=None)
        if self.corner is None:
            return replace(self, corner=(row, column))
        (top, bottom), (left, right) = (sorted(pair) for pair in zip(self.corner, (row, column), strict=True))
        if bottom - top < 1 or right - left < 1:
            raise InvalidRequest(words.SMALL_BOX)
        return replace(self, boxes=(*self.boxes, BoxMark(top=top, left=left, bottom=bottom, right=right)), corner=None)


def film_place(x: float, y: float, film: OpenFilm, contract: InputContract) -> tuple[float, float]:
    """(row, column) in the film's pixels under a place of the shown square, both 0 to 1 from its upper left corner.

    Raises InvalidRequest where the square shows a border instead of the film.
    """
    height, width = extent(film)
    place = placement(height, width, contract)
    row = (y * place.size - place.top) * height / place.height
    column = (x * place.size - place.left) * width / place.width
    if not (0 <= row < height and 0 <= column < width):
        raise InvalidRequest(words.OUTSIDE_FILM)
    return row, column


def shown_place(row: float, column: float, film: OpenFilm, contract: InputContract) -> tuple[float, float]:
    """The (x, y) that `film_place` finds (row, column) under."""
    height, width = extent(film)
    place = placement(height, width, contract)
    return (
        (column * place.width / width + place.left) / place.size,
        (row * place.height / height + place.top) / place.size,
    )


def extent(film: OpenFilm) -> tuple[int, int]:
    """(height, width) of the film as it was sent."""
    height, width = film.image.pixels.shape[1:3]
    return int(height), int(width)


def marks_html(marks: Marks, film: OpenFilm, contract: InputContract) -> str:
    """To lay over the shown film."""
    drawn = []
    for box in marks.boxes:
        left, top = shown_place(box.top, box.left, film, contract)
        right, bottom = shown_place(box.bottom, box.right, film, contract)
        drawn.append(
            f'<span class="mark box" style="left:{_percent(left)};top:{_percent(top)};'
            f'width:{_percent(right - left)};height:{_percent(bottom - top)}"></span>'
        )
    places = [("inside" if point.inside else "outside", point.row, point.column) for point in marks.points]
    places += [("corner", *marks.corner)] if marks.corner is not None else []
    for kind, row, column in places:
        x, y = shown_place(row, column, film, contract)
        drawn.append(f'<span class="mark {kind}" style="left:{_percent(x)};top:{_percent(y)}"></span>')
    return "".join(drawn)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
