"""What a film looks like before any tower has read it: 1,188 numbers that tell a frontal chest film from other pictures.

    thumbnail    32 x 32 greys, the film's own mean and spread taken out: where it is dark and where bright
    exposure     that mean and that spread
    edges        9 x 9 cells, how rough each is from left to right and from top to bottom

A turned film has its lungs elsewhere, an inverted one has them bright, a page is rough in one direction. The numbers
depend on no model, so a new tower leaves them as they are. Numpy and Pillow only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE, CELL, EDGE_CELL, EDGE_CELLS = 128, 4, 14, 9
LOOK_WIDTH = (SIZE // CELL) ** 2 + 2 + 2 * EDGE_CELLS**2
COLOUR_SPREAD, COLOUR_SHARE = 48, 0.2  # a film may be tinted or carry a coloured mark; a fifth of strong colour is no film

Greys = npt.NDArray[np.uint8]


def film_looks(films: Greys) -> npt.NDArray[np.float32]:
    """(B, S, S) grey -> (B, LOOK_WIDTH)."""
    count = len(films)
    grey = np.stack([_at_size(film) for film in films]).astype(np.float32) / 255.0
    cells = grey.reshape(count, SIZE // CELL, CELL, SIZE // CELL, CELL).mean((2, 4)).reshape(count, -1)
    mean, spread = cells.mean(1, keepdims=True), cells.std(1, keepdims=True)
    inner = EDGE_CELL * EDGE_CELLS
    across, down = (np.diff(grey, axis=axis)[:, :inner, :inner] for axis in (2, 1))
    return np.concatenate(
        [(cells - mean) / (spread + 0.05), mean * 4 - 2, spread * 8 - 2, _roughness(across), _roughness(down)], axis=1
    )


def as_grey(pixels: Greys) -> Greys:
    """(S, S) or (S, S, 3) -> (S, S)."""
    return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))


def is_coloured(pixels: Greys) -> bool:
    """Whether the picture (S, S, 3) is a colour picture."""
    if pixels.ndim == 2:
        return False
    spread = pixels.max(2).astype(int) - pixels.min(2)
    return float((spread > COLOUR_SPREAD).mean()) > COLOUR_SHARE


def _roughness(steps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    count = len(steps)
    cells: Any = np.abs(steps).reshape(count, EDGE_CELLS, EDGE_CELL, EDGE_CELLS, EDGE_CELL).mean((2, 4))
    return np.asarray(np.sqrt(cells.reshape(count, -1), dtype=np.float32) * 5)


def _at_size(film: Greys) -> Greys:
    if film.shape == (SIZE, SIZE):
        return film
    return np.asarray(Image.fromarray(film).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
