"""A film looked at larger than the tower's own input: what a convolutional tower sees at other scales."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def enlarge(pixels: Tensor, size: int) -> Tensor:
    """Normalised films (B, 3, S, S) -> (B, 3, size, size), bicubic; as they are where S is `size` already.

    A tower bound to one input size refuses the result by itself.
    """
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels.float(), (size, size), mode="bicubic", align_corners=False).to(pixels.dtype)
