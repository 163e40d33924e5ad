"""Masks as coloured outlines to lay over the shown film, each class in a colour of its own."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from foundation.preprocess import InputContract, fit_mask

# Okabe and Ito (2008), the ones that stand out from grey: told apart without colour vision as well.
COLORS = ((86, 180, 233), (230, 159, 0), (0, 178, 131), (240, 228, 66), (213, 94, 0), (204, 121, 167))
FILL, LINE = 50, 255  # opacities
FINE_SIDE = 512  # the square is drawn at least so large, so that outlines are smooth
LINE_WIDTH = 2


def color_of(index: int) -> tuple[int, int, int]:
    return COLORS[index % len(COLORS)]


def read_mask(uri: str) -> npt.NDArray[np.bool_]:
    """(H, W) from a one-bit PNG as a data URI."""
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(picture.convert("L")) >= 128


def outlined(mask: npt.NDArray[np.bool_], color: tuple[int, int, int], contract: InputContract) -> npt.NDArray[np.uint8]:
    """mask (H, W) in the film's pixels -> (F, F, 4) over the model's square, F being a multiple of its side."""
    times = -(-FINE_SIDE // contract.size)
    shown = fit_mask(mask, replace(contract, size=contract.size * times)) >= 128
    drawn = np.zeros((*shown.shape, 4), np.uint8)
    drawn[..., :3] = color
    drawn[..., 3] = np.where(shown, np.where(_edge(shown), LINE, FILL), 0)
    return drawn


def _edge(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """What of a mask lies within LINE_WIDTH pixels of its outside."""
    inner = mask.copy()
    for _ in range(LINE_WIDTH):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)
