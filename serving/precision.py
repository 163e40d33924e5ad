"""Which number format the image tower and the decoder compute in: as asked, or whichever a short measurement finds faster.

bfloat16 moves scores in the third digit and is faster on most, not all, machines and shapes. Each is measured by itself, but
on a device without bfloat16 products, where the measurement alone could take minutes.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foundation.device import multiplies_bf16
from serving.packed import pack_linears

if TYPE_CHECKING:
    from foundation.backbone import Backbone
    from foundation.decoder import Decoder
    from serving.config import Precision

log = logging.getLogger("serving.precision")
_FILMS = 4
_ROUNDS = 3
_PROMPT_TOKENS = 128
WORTH = 0.9  # bfloat16 must take at most this share of float32's time


def settle(backbone: Backbone, wanted: Precision) -> str:
    """Put the image tower into its format and return that format's name."""
    if _is_settled(wanted, next(backbone.image_tower.parameters()).device):
        return "float32"
    original = copy.deepcopy(backbone.image_tower)
    slow_s = _forward_s(backbone) if wanted == "auto" else float("inf")
    backbone.image_tower.to(torch.bfloat16)
    pack_linears(backbone.image_tower)
    if wanted == "auto" and _forward_s(backbone) > WORTH * slow_s:
        backbone.image_tower = original
        return "float32"
    return "bfloat16"


def settle_decoder(decoder: Decoder, wanted: Precision) -> str:
    """Put the decoder into its format and return that format's name."""
    if _is_settled(wanted, decoder.device):
        return "float32"
    original = [parameter.data for parameter in decoder.parameters()]
    slow_s = _prompt_s(decoder) if wanted == "auto" else float("inf")
    decoder.compute_in(torch.bfloat16)
    if wanted == "auto" and _prompt_s(decoder) > WORTH * slow_s:
        for parameter, data in zip(decoder.parameters(), original, strict=True):
            parameter.data = data
        return "float32"
    return "bfloat16"


def _is_settled(wanted: Precision, device: torch.device) -> bool:
    """Whether it is float32 without a measurement. bfloat16 where somebody insists on it is only warned about."""
    if wanted == "bfloat16" and not multiplies_bf16(device):
        log.warning("this %s has no bfloat16 products: bfloat16 is far slower on it than float32", device.type)
    return wanted == "float32" or (wanted == "auto" and not multiplies_bf16(device))


@torch.inference_mode()
def _forward_s(backbone: Backbone) -> float:
    """The best of a few forwards, in seconds."""
    size = backbone.contract.size
    pixels = torch.zeros(_FILMS, 3, size, size)
    return _best_s(lambda: backbone.encode_image(pixels).embedding)


@torch.inference_mode()
def _prompt_s(decoder: Decoder) -> float:
    """The best of a few readings of a prompt, in seconds: that is most of a chat's work."""
    ids = torch.full((1, min(_PROMPT_TOKENS, decoder.context)), decoder.end_id, device=decoder.model.device)
    return _best_s(lambda: decoder.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits)


def _best_s(forward: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        forward().sum().item()
        times.append(time.perf_counter() - start)
    return min(times[1:])
