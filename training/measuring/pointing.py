"""The pointing game: does the hottest place of a map lie where the finding is? (Zhang 2016)

A region (H, W) is where a finding is: a phantom's mask, or the boxes that a radiologist drew. A hit is the hottest place
inside it, with no tolerance around it. Beside every map two who look at nothing: the film's centre, and a place at random,
which hits as often as the region is large. Which maps are asked, `evaluating/explanations.py` and
`finetuning/anomaly/report.py` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from training.manifests.manifest import Row

Region: TypeAlias = npt.NDArray[np.bool_]
Heat: TypeAlias = npt.NDArray[np.float32]
FRAME = 1024.0  # the side that boxes called xywh_1024 are in, whatever the film's own
BOX_WORDS = {"infiltrate": "infiltration"}
CENTRE, RANDOM_PLACE = "centre", "random place"


def regions_of(row: Row, film: tuple[int, int]) -> dict[str, Region]:
    """The row's boxes in a film of (height, width) pixels; several boxes of one finding are one region.

    A box is {"label": ..., "xywh_1024": [x, y, width, height]} over a film of 1,024 pixels, or "xywh" in the film's own.
    """
    regions: dict[str, Region] = {}
    for box in row.get("boxes") or ():
        label = str(box.get("label", "")).lower()
        down, across = (film[0] / FRAME, film[1] / FRAME) if "xywh_1024" in box else (1.0, 1.0)
        x, y, width, height = (float(side) for side in box.get("xywh_1024") or box["xywh"])
        region = regions.setdefault(BOX_WORDS.get(label, label), np.zeros(film, bool))
        rows, columns = _pixels(y * down, height * down), _pixels(x * across, width * across)
        region[rows, columns] = True
    return regions


def _pixels(start: float, length: float) -> slice:
    """Every pixel that a side touches."""
    return slice(max(0, int(np.floor(start))), max(0, int(np.ceil(start + length))))


def hottest(heat: Heat) -> tuple[int, int]:
    """The pixel nearest to the middle of those that are as hot as the hottest: a map that was enlarged has many."""
    rows, columns = np.nonzero(heat >= heat.max() - 1e-6)
    middle = int(np.hypot(rows - rows.mean(), columns - columns.mean()).argmin())
    return int(rows[middle]), int(columns[middle])


def hit(heat: Heat, region: Region) -> float:
    """heat of the region's shape: 1 where its hottest place is inside; a flat map points nowhere."""
    return float(region[hottest(heat)]) if heat.max() > heat.min() else 0.0


def blind_hits(region: Region) -> dict[str, float]:
    """1 or 0 for the film's centre; for a random place its chance."""
    height, width = region.shape
    return {CENTRE: float(region[height // 2, width // 2]), RANDOM_PLACE: float(region.mean())}


def point(heats: Mapping[str, Heat], region: Region) -> dict[str, float]:
    """Every heat map (H, W) of one film, and those who look at nothing."""
    return {**{name: hit(heat, region) for name, heat in heats.items()}, **blind_hits(region)}
