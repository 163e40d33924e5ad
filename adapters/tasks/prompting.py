"""Points and boxes that say which part is meant, drawn as maps for the segmentation head's refiner. Numpy only.

Prompt(points, boxes)  in the film's pixels  --on_grid-->  in a square's cells  --draw-->  hints (3, H, W):
    0  discs around points that lie inside what is meant
    1  discs around points that lie outside
    2  the boxes' areas
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foundation.errors import InvalidRequest
from foundation.preprocess import Placement

CHANNELS = 3
DISC_RADIUS = 0.018  # of the square's side


@dataclass(frozen=True)
class Point:
    """A place in the film, in pixels from its upper left corner; `is_inside` False: this is not meant."""

    row: float
    column: float
    is_inside: bool = True


@dataclass(frozen=True)
class Box:
    """A region in the film, in pixels; the lower right corner is not part of it."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True)
class Prompt:
    """What a caller marks in one film. Without marks the whole of each class is meant."""

    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()

    def check(self, height: int, width: int) -> None:
        """Raises InvalidRequest where a mark lies outside a film of height x width pixels, or nothing marks an inside."""
        for point in self.points:
            if not (0 <= point.row < height and 0 <= point.column < width):
                raise InvalidRequest(
                    f"The point ({point.row:g}, {point.column:g}) lies outside the film of {height} x {width} pixels.",
                    param="points",
                )
        for box in self.boxes:
            if not (0 <= box.top < box.bottom <= height and 0 <= box.left < box.right <= width):
                raise InvalidRequest(
                    f"The box {box.top:g}, {box.left:g}, {box.bottom:g}, {box.right:g} is not top < bottom and left < right "
                    f"within {height} x {width} pixels.",
                    param="boxes",
                )
        if self.points and not self.boxes and not any(point.is_inside for point in self.points):
            raise InvalidRequest("Mark at least one point inside what is meant, or a box.", param="points")


def on_grid(prompt: Prompt, film: tuple[int, int], place: Placement, side: int) -> Prompt:
    """Marks in a film of `film` = (height, width) pixels, in the cells of a (side, side) grid over the model's square.

    Raises InvalidRequest where the film cannot hold them (`Prompt.check`).
    """
    prompt.check(*film)
    scale = side / place.size
    top, left = scale * place.top, scale * place.left
    down, right = scale * place.height / film[0], scale * place.width / film[1]
    points = tuple(Point(top + p.row * down, left + p.column * right, p.is_inside) for p in prompt.points)
    boxes = tuple(
        Box(top + box.top * down, left + box.left * right, top + box.bottom * down, left + box.right * right)
        for box in prompt.boxes
    )
    return Prompt(points, boxes)


def draw(marks: Prompt, side: int) -> npt.NDArray[np.float32]:
    """(3, side, side) hints for marks that are in the grid's cells."""
    hints = np.zeros((CHANNELS, side, side), np.float32)
    for point in marks.points:
        draw_disc(hints[0 if point.is_inside else 1], point.row, point.column)
    for box in marks.boxes:
        hints[2, _cells(box.top, box.bottom, side), _cells(box.left, box.right, side)] = 1.0
    return hints


def draw_disc(canvas: npt.NDArray[np.float32], row: float, column: float) -> None:
    """Draw a disc into `canvas` (side, side); at least the pixel at its centre is marked."""
    side = canvas.shape[0]
    y, x = np.ogrid[:side, :side]
    radius = max(0.75, DISC_RADIUS * side)
    canvas[(y + 0.5 - row) ** 2 + (x + 0.5 - column) ** 2 <= radius**2] = 1.0


def _cells(start: float, stop: float, side: int) -> slice:
    first = min(side - 1, max(0, round(start)))
    return slice(first, max(first + 1, min(side, round(stop))))
