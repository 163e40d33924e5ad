"""SlotCache: one static key-value cache for all sequences under way, a row each.

layers    each (2, R, H, T, d)     keys and values of R rows, H key-value heads, T places, d per head; views into one tensor
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class SlotCache:
    """Keys and values of `rows` sequences of at most `places` tokens."""

    def __init__(self, config: Any, rows: int, places: int, device: torch.device, dtype: torch.dtype) -> None:
        heads, width = int(config.num_key_value_heads), int(config.head_dim)
        shape = (rows, heads, places, width)
        self._held = _zeros((int(config.num_hidden_layers), 2, *shape), device, dtype)
        self.layers = self._held.unbind()
        self.rows = rows

    def read(self, row: int, length: int) -> Tensor:
        """A copy of a row's first `length` places: (layers, 2, H, length, d)."""
        return self._held[:, :, row, :, :length].clone(memory_format=torch.contiguous_format)

    def write(self, row: int, held: Tensor) -> None:
        """What `read` gave, into the first places of a row."""
        self._held[:, :, row, :, : held.shape[3]] = held

    def move(self, source: int, target: int, length: int) -> None:
        if source != target:
            self._held[:, :, target, :, :length] = self._held[:, :, source, :, :length]

    def wipe(self, row: int) -> None:
        """NOTE: what is masked is multiplied by zero, and zero times NaN is NaN: a broken row must not be left behind."""
        self._held[:, :, row].zero_()


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros; on the CPU such as take no memory before they are written to."""
    if device.type == "cpu":
        plain = np.zeros(shape, np.float32 if dtype == torch.float32 else np.uint16)
        return torch.from_numpy(plain).view(dtype)
    return torch.zeros(shape, device=device, dtype=dtype)
