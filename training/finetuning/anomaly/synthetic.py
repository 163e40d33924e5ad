"""Synthetic anomalies: lesions of phantoms laid over real normal films, with exact masks.

A phantom drawn with and without a finding is the same patient in the same exposure: what differs is the lesion alone, in
grey levels. That difference is moved a little, made stronger or weaker, and added to a normal film.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foundation.phantom import make_phantom

FINDINGS = ("effusion", "pneumothorax", "nodule", "mass", "consolidation", "cardiomegaly", "edema", "atelectasis")
GAIN = (0.6, 1.6)
SHIFT = 0.06  # of the film's side
SMALLEST = 4.0  # grey levels: differences below it are not part of the lesion
_SIZES = (48, 2048)

Film = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Lesion:
    """delta (S, S) in grey levels to be added, and where it can be seen (S, S)."""

    finding: str
    delta: npt.NDArray[np.float32]
    mask: Mask


def draw_lesion(seed: int, size: int) -> Lesion:
    """The lesion of a phantom patient of this seed, at `size` pixels."""
    finding = FINDINGS[seed % len(FINDINGS)]
    drawn = min(max(size, _SIZES[0]), _SIZES[1])
    ill, well = (make_phantom(seed, drawn, findings).film.astype(np.float32) for findings in ((finding,), ()))
    delta = ill - well
    if drawn != size:
        places = np.arange(size) * drawn // size
        delta = delta[np.ix_(places, places)]
    return Lesion(finding, delta, np.abs(delta) >= SMALLEST)


def lay_over(film: Film, lesion: Lesion, random: np.random.Generator) -> tuple[Film, Mask]:
    """A normal film (S, S, C) with the lesion, and where the lesion shows in it: where grey levels really changed."""
    reach = max(1, round(SHIFT * film.shape[0]))
    moved = _shift(lesion.delta * np.float32(random.uniform(*GAIN)), random.integers(-reach, reach + 1, 2))
    ill = np.clip(np.rint(film.astype(np.float32) + moved[..., None]), 0, 255).astype(np.uint8)
    changed = np.abs(ill.astype(np.int16) - film.astype(np.int16)).max(axis=-1)
    return ill, np.asarray(changed >= SMALLEST)


def _shift(delta: npt.NDArray[np.float32], by: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Moved by (rows, columns), zeros coming in."""
    rows, columns = (int(step) for step in by)
    height, width = delta.shape
    moved = np.zeros_like(delta)
    moved[max(0, rows) : height + min(0, rows), max(0, columns) : width + min(0, columns)] = delta[
        max(0, -rows) : height + min(0, -rows), max(0, -columns) : width + min(0, -columns)
    ]
    return moved
