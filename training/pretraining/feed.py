"""Feed: films from a table to the tower, on its device and in its precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundation.device import autocast_bf16
from training.pretraining.learner import Learner


@dataclass(frozen=True)
class Feed:
    """mean, std: of the tower's input contract."""

    device: torch.device
    mean: float
    std: float
    is_bf16: bool

    def films(self, pixels: np.ndarray[Any, Any]) -> Tensor:
        """(B, S, S) uint8 -> (B, 1, S, S) in 0..1, on the device."""
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).float().div(255).unsqueeze(1)

    def feature_map(self, learner: Learner, films: Tensor) -> Tensor:
        """(B, 1, S, S) in 0..1 -> (B, D, h, w), in the precision of `autocast`."""
        with self.autocast():
            return learner.feature_map(self.normalised(films))

    def autocast(self) -> torch.autocast:
        return autocast_bf16(self.device, wanted=self.is_bf16)

    def normalised(self, films: Tensor) -> Tensor:
        """(B, 1, S, S) in 0..1 -> (B, 3, S, S) as the tower eats it."""
        films = (films - self.mean) / self.std
        return films.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
