"""A heat map as a picture to lay over the film: cold is clear, so the film stays readable where nothing speaks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.schemas.chat import HeatMap

# Places of 0..1 and their red, green, blue, opacity; even steps of lightness, readable without colour vision.
STOPS = (0.0, 0.45, 0.65, 0.85, 1.0)
COLORS = ((59, 15, 112, 0), (101, 26, 128, 40), (181, 54, 122, 120), (251, 136, 97, 160), (252, 253, 191, 185))


def overlay(heat: HeatMap, size: int) -> npt.NDArray[np.uint8]:
    """(size, size, 4): the grid's cells lie over the same parts of the film as the patches they come from."""
    grid = np.clip(np.asarray(heat.grid, np.float32), 0.0, 1.0)
    smooth = np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))
    colors = np.asarray(COLORS, np.float32)
    channels = [np.interp(np.clip(smooth, 0.0, 1.0), STOPS, colors[:, channel]) for channel in range(4)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
