"""What is tried before an adapter answers: on a test film, the bank must say what the plain definition of LoRA says.

The plain definition stands in `adapters/lora.py` and is slow and clear; the bank is fast. An adapter for which the two
differ, or which changes nothing in what the tower says, is refused with the figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adapters.lora import load_weights, remove_lora
from foundation.errors import AdapterRefused
from foundation.preprocess import normalise

if TYPE_CHECKING:
    from adapters.bank import AdapterBank
    from adapters.files import Adapter
    from foundation.backbone import Backbone

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}  # of the largest token


@torch.inference_mode()
def check_adapter(backbone: Backbone, bank: AdapterBank, slot: int, adapter: Adapter) -> float:
    """How far the bank is from the definition, as a share of the largest token. Raises AdapterRefused."""
    film = torch.from_numpy(normalise(_test_film(backbone.contract.size), backbone.contract))[None]
    with bank.rows([slot]):
        through_bank = _say(backbone, film)
    plain, base = _plainly(backbone, adapter, film), _say(backbone, film)
    scale = float(plain.abs().max()) or 1.0
    deviation = float((through_bank - plain).abs().max()) / scale
    tolerance = TOLERANCES.get(backbone.dtype, 1e-3)
    if not deviation <= tolerance:  # a number that is none fails as well
        raise AdapterRefused(
            f"The adapter {adapter.card.name!r} fails its test: the bank differs from the plain definition by {deviation:.2g} "
            f"of the largest feature, where {tolerance:g} is allowed. It is not served; train or export it again.",
            param="model",
        )
    if torch.equal(plain, base):
        raise AdapterRefused(
            f"The adapter {adapter.card.name!r} fails its test: it changes nothing in what the tower says.", param="model"
        )
    return deviation


def _plainly(backbone: Backbone, adapter: Adapter, film: Tensor) -> Tensor:
    load_weights(backbone.image_tower, adapter.lora)
    try:
        return _say(backbone, film)
    finally:
        remove_lora(backbone.image_tower)


def _say(backbone: Backbone, film: Tensor) -> Tensor:
    features = backbone.encode_image(film)
    return torch.cat([features.tokens.float().flatten(), features.embedding.flatten()])


def _test_film(size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Blotches and a gradient: something everywhere, the same on every machine."""
    coarse = np.random.default_rng(20).integers(0, 128, (8, 8), dtype=np.uint8)
    cells = np.minimum(np.arange(size) * 8 // size, 7)
    film = coarse[cells][:, cells] + np.linspace(0, 127, size, dtype=np.uint8)
    return np.repeat(film[..., None], 3, axis=2)
