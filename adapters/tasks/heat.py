"""Heat maps as pictures. Numpy and Pillow only: this runs where no torch is."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def heat_png(heat: npt.NDArray[np.float32]) -> tuple[bytes, tuple[float, float]]:
    """(H, W) -> a 16-bit grey PNG, and the values that its 0 and 65535 stand for."""
    low, high = float(heat.min()), float(heat.max())
    levels = np.rint((heat - low) / ((high - low) or 1.0) * 65535).astype(np.uint16)
    target = io.BytesIO()
    Image.fromarray(levels).save(target, "PNG")
    return target.getvalue(), (low, high)
