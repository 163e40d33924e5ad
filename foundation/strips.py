"""Resizing a large picture on two cores, to the bit as on one.

    Pillow's resize = all rows to the new width, each row alone; then all columns to the new height.

So the rows may be taken in strips, by whoever is free; the columns come once all strips are there.
"""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt
from PIL import Image

STRIP_PIXELS = 1 << 19  # some millisecond; each strip costs a twentieth of that more than its share of the whole


def resize_in_strips(
    pixels: npt.NDArray[np.uint8], width: int, height: int, method: Image.Resampling, helper: Executor
) -> Image.Image:
    """(H, W) or (H, W, 3) -> a picture of width x height, as `Image.fromarray(pixels).resize(...)` gives it.

    helper: a thread that takes strips as soon as it comes to them; where it never does, this one takes all.
    """
    step = max(1, STRIP_PIXELS // pixels.shape[1])
    narrow = Image.new("L" if pixels.ndim == 2 else "RGB", (width, len(pixels)))
    tops = iter(range(0, len(pixels), step))  # shared: each strip is taken once

    def take_strips() -> None:
        for top in tops:
            strip = Image.fromarray(pixels[top : top + step])
            narrow.paste(strip.resize((width, strip.height), method), (0, top))

    beside = helper.submit(take_strips)
    take_strips()
    if not beside.cancel():
        beside.result()
    return narrow.resize((width, height), method)
