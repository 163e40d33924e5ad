"""Where a finding lies, told from its heat map: side and zone, or "unknown" where the map does not tell.

    map (h, w)   each patch's likeness to "there is x" minus "there is no x"; row 0 is the top of the film, and the patient's
                 right lies on the left of the picture. Below zero a place speaks against the finding.

    side         the half with the larger peak; both where the peaks are nearly alike; unknown between the two, and where
                 nothing on the film speaks for the finding
    zone         the height of what stands out on that side

The constants were chosen on phantoms (`training/evaluating/phantom_check.py` measures the rule on others). Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from foundation.lexicon import FINDINGS

Side = Literal["left", "right", "bilateral"]
Zone = Literal["upper", "middle", "lower"]

LATERAL: Final = frozenset(FINDINGS) - {"cardiomegaly", "hernia"}
"""Findings that have a side; the heart and the stomach lie where they lie."""
ZONAL: Final = frozenset({"atelectasis", "consolidation", "infiltration", "mass", "nodule", "pneumonia"})
"""Findings of a part of the lung; fluid and free air spread as gravity has it."""

_SPEAKS_FOR: Final = 0.2  # the least peak that says anything; above zero, as real films are told worse than phantoms
_FLAT: Final = 0.05  # a map that varies by less tells no place
_ONE_SIDED: Final = 0.8  # of the way from the map's lowest to its peak: a weaker side below this is not meant
_BILATERAL: Final = 0.9  # above this both are
_STANDS_OUT: Final = 0.5  # of the way from the lowest to the peak: what counts for the height
_UPPER_ENDS, _LOWER_BEGINS = 0.36, 0.52  # of the film's height


@dataclass(frozen=True)
class Place:
    """None: unknown, or the finding has no such thing."""

    side: Side | None = None
    zone: Zone | None = None


UNKNOWN: Final = Place()


def place_of(name: str, likeness: npt.NDArray[np.floating]) -> Place:
    """likeness: the map of finding `name`, (h, w), as told at the top of this file."""
    heat: npt.NDArray[np.float64] = np.asarray(likeness, dtype=np.float64)
    low, peak = float(heat.min()), float(heat.max())
    if name not in LATERAL or heat.shape[1] < 2 or peak < _SPEAKS_FOR or peak - low < _FLAT:
        return UNKNOWN
    side = _side(heat, low)
    if side is None or name not in ZONAL:
        return Place(side)
    return Place(side, _zone(_half(heat, side), low, peak))


def _side(likeness: npt.NDArray[np.float64], low: float) -> Side | None:
    left, right = (float(_half(likeness, side).max()) for side in ("left", "right"))
    weaker = (min(left, right) - low) / (max(left, right) - low)
    if weaker > _BILATERAL:
        return "bilateral"
    if weaker > _ONE_SIDED:
        return None
    return "left" if left > right else "right"


def _half(likeness: npt.NDArray[np.float64], side: str) -> npt.NDArray[np.float64]:
    """The columns of a side; a middle column belongs to neither."""
    half = likeness.shape[1] // 2
    return {"left": likeness[:, -half:], "right": likeness[:, :half], "bilateral": likeness}[side]


def _zone(part: npt.NDArray[np.float64], low: float, peak: float) -> Zone:
    rows = np.clip(part - (low + _STANDS_OUT * (peak - low)), 0, None).sum(axis=1)
    heights = (np.arange(len(rows)) + 0.5) / len(rows)
    height = float(rows @ heights / rows.sum())
    return "upper" if height < _UPPER_ENDS else "lower" if height >= _LOWER_BEGINS else "middle"
