"""A heat map as a picture to lay over the film: cold is clear, so the film stays readable where nothing speaks."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from foundation.preprocess import InputContract, fit_map
from serving.schemas.anomaly import HeatPicture
from serving.schemas.chat import HeatMap

# Places of 0..1 and their red, green, blue, opacity; even steps of lightness, readable without colour vision.
STOPS = (0.0, 0.45, 0.65, 0.85, 1.0)
COLORS = ((59, 15, 112, 0), (101, 26, 128, 40), (181, 54, 122, 120), (251, 136, 97, 160), (252, 253, 191, 185))


FLOOR = 0.8  # of normal films' patches; what is less strange than that stays clear


def overlay(heat: HeatMap, size: int) -> npt.NDArray[np.uint8]:
    """(size, size, 4): the grid's cells lie over the same parts of the film as the patches they come from."""
    grid = np.clip(np.asarray(heat.grid, np.float32), 0.0, 1.0)
    return colored(np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)))


def strange_overlay(heat: HeatPicture, contract: InputContract) -> npt.NDArray[np.uint8]:
    """(S, S, 4): an anomaly map, which is of the film's own pixels, over the model's square. Clear below FLOOR."""
    values = fit_map(read_heat(heat), contract)
    return colored((values - FLOOR) / (1.0 - FLOOR))


def read_heat(heat: HeatPicture) -> npt.NDArray[np.float32]:
    """(H, W): the values a 16-bit PNG stands for."""
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat.png.partition(",")[2]))), np.float32)
    return np.asarray(heat.low + levels / 65535 * (heat.high - heat.low), np.float32)


def colored(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(H, W), 0 to 1 -> (H, W, 4)."""
    colors, within = np.asarray(COLORS, np.float32), np.clip(values, 0.0, 1.0)
    channels = [np.interp(within, STOPS, colors[:, channel]) for channel in range(4)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
