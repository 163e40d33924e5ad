"""The pointing game: does the hottest place of a heat map lie in a box that a radiologist drew? (Zhang 2018)

Beside it two who look at nothing: the film's centre, and a place at random, which hits as often as boxes are large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.manifest import Row

Box = tuple[float, float, float, float]  # top, left, bottom, right in pixels of the film
FRAME = 1024.0  # the side that boxes called xywh_1024 are in, whatever the film's own


def boxes_of(row: Row, film: tuple[int, int]) -> list[Box]:
    """The row's boxes in a film of (height, width) pixels; [] where it has none.

    A box is {"xywh_1024": [x, y, width, height]} over a film of 1,024 pixels, or {"xywh": ...} in the film's own.
    """
    made = []
    for box in row.get("boxes") or ():
        down, across = (film[0] / FRAME, film[1] / FRAME) if "xywh_1024" in box else (1.0, 1.0)
        x, y, width, height = (float(side) for side in box.get("xywh_1024") or box["xywh"])
        made.append((y * down, x * across, (y + height) * down, (x + width) * across))
    return made


def hits(place: tuple[float, float], boxes: Sequence[Box]) -> bool:
    row, column = place
    return any(top <= row < bottom and left <= column < right for top, left, bottom, right in boxes)


def hottest(heat: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The middle of the pixels that are as hot as the hottest: a map that was enlarged has many."""
    rows, columns = np.nonzero(heat >= heat.max() - 1e-6)
    middle = int(np.hypot(rows - rows.mean(), columns - columns.mean()).argmin())
    return float(rows[middle]) + 0.5, float(columns[middle]) + 0.5


def point(heats: Mapping[str, npt.NDArray[np.float32]], boxes: Sequence[Box]) -> dict[str, float]:
    """1 or 0 for each heat map (H, W) of one film, and for the centre; for a random place its chance."""
    height, width = next(iter(heats.values())).shape
    scored: dict[str, Any] = {name: float(hits(hottest(heat), boxes)) for name, heat in heats.items()}
    covered = np.zeros((height, width), bool)
    for top, left, bottom, right in boxes:
        covered[max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)] = True
    return {**scored, "centre": float(hits((height / 2, width / 2), boxes)), "random place": float(covered.mean())}
