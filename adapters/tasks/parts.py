"""The connected parts of a mask. Numpy and scipy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def largest_parts(mask: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    """The `count` largest connected parts of a mask of any dimension; all of it where count is 0."""
    from scipy.ndimage import label

    parts, found = label(mask)
    if not count or found <= count:
        return mask
    sizes = np.bincount(parts.ravel())[1:]
    return np.asarray(np.isin(parts, 1 + np.argsort(-sizes, kind="stable")[:count]))
