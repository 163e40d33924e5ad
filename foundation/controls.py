"""A film with its content taken away, for asking what would be said without it.

Serving scores every chat answer again on both (reliance), training teaches with them that nothing can be told, and
reports show what they cost.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
SHUFFLE_CELLS = 14  # a side


def blank(pixels: Pixels) -> Pixels:
    """The film taken away: its mean grey everywhere."""
    return np.full_like(pixels, round(float(pixels.mean())))


def shuffled(pixels: Pixels) -> Pixels:
    """The film's cells in another order, the same for the same film: its texture without its anatomy."""
    size = pixels.shape[0]
    edges = [round(size * step / SHUFFLE_CELLS) for step in range(SHUFFLE_CELLS + 1)]
    side = min(b - a for a, b in pairwise(edges))
    if side < 1:
        return pixels.copy()
    seed = int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:8], "big")
    order = np.random.default_rng(seed).permutation(SHUFFLE_CELLS**2)
    starts = [(row, column) for row in edges[:-1] for column in edges[:-1]]
    mixed = pixels.copy()
    for target, source in enumerate(order):
        (to_row, to_column), (row, column) = starts[target], starts[source]
        mixed[to_row : to_row + side, to_column : to_column + side] = pixels[row : row + side, column : column + side]
    return mixed
