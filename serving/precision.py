"""Which number format the image tower computes in: as asked, or whichever a short measurement finds faster.

bfloat16 moves scores in the third digit and is faster on most, not all, machines and shapes.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from foundation.backbone import Backbone
    from serving.config import Precision

_FILMS = 4
_ROUNDS = 3
WORTH = 0.9  # bfloat16 must take at most this share of float32's time


def settle(backbone: Backbone, wanted: Precision) -> str:
    """Put the image tower into its format and return that format's name."""
    if wanted == "float32":
        return wanted
    original = copy.deepcopy(backbone.image_tower)
    slow_s = _forward_s(backbone) if wanted == "auto" else float("inf")
    backbone.image_tower.to(torch.bfloat16)
    if wanted == "auto" and _forward_s(backbone) > WORTH * slow_s:
        backbone.image_tower = original
        return "float32"
    return "bfloat16"


@torch.inference_mode()
def _forward_s(backbone: Backbone) -> float:
    """The best of a few forwards, in seconds."""
    size = backbone.contract.size
    pixels = torch.zeros(_FILMS, 3, size, size)
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        backbone.encode_image(pixels).embedding.sum().item()
        times.append(time.perf_counter() - start)
    return min(times[1:])
