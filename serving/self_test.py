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


class SelfTest:
    """What every adapter of one backbone is tried with. The base's own answer is computed once."""

    def __init__(self, backbone: Backbone, bank: AdapterBank) -> None:
        self._backbone = backbone
        self._bank = bank
        self._film = torch.from_numpy(normalise(_test_film(backbone.contract.size), backbone.contract))[None]
        self._base: Tensor | None = None

    @torch.inference_mode()
    def try_adapter(self, slot: int, adapter: Adapter) -> float:
        """How far the bank is from the definition, as a share of the largest token. Raises AdapterRefused."""
        backbone = self._backbone
        with self._bank.rows([slot]):
            through_bank = _say(backbone, self._film)
        plain = _plainly(backbone, adapter, self._film)
        if self._base is None:
            self._base = _say(backbone, self._film)
        scale = float(plain.abs().max()) or 1.0
        deviation = float((through_bank - plain).abs().max()) / scale
        tolerance = TOLERANCES.get(backbone.dtype, 1e-3)
        if not deviation <= tolerance:  # a number that is none fails as well
            raise AdapterRefused(
                f"The adapter {adapter.card.name!r} fails its test: the bank differs from the plain definition by "
                f"{deviation:.2g} of the largest feature, where {tolerance:g} is allowed. It is not served; train or export "
                "it again.",
                param="model",
            )
        if torch.equal(plain, self._base):
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
