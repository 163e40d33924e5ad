"""LoopConfig: how the one loop (`loop.py`) trains: how long, at which rate, in which precision, and what it saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foundation.errors import InvalidRequest

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class LoopConfig:
    """How to train. Learning rates are the parameter groups'; here is only their common shape.

    The rate rises linearly over `warmup` of all steps, then falls as a cosine to `final_rate` of its height. Validation
    happens after every epoch; training stops once `patience` epochs brought no better `monitor`. With `average` above 0
    what is validated and kept is the running mean of the weights, which keeps that share of itself at each step. With
    `precision` "bf16" products are in bfloat16 on devices that have them, elsewhere in float32.
    """

    epochs: int
    monitor: str = "auroc"
    is_higher_better: bool = True
    patience: int | None = None
    accumulate: int = 1
    precision: str = "fp32"
    clip_norm: float = 1.0
    warmup: float = 0.05
    final_rate: float = 0.02
    weight_decay: float = 0.01
    average: float = 0.0
    seed: int = 0
    workers: int = 0
    save_every_steps: int | None = None
    cpu: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InvalidRequest(f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}.", param="precision")
        for name in ("epochs", "accumulate"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1, not {getattr(self, name)}.", param=name)
        if not 0.0 <= self.average < 1.0:
            raise InvalidRequest(f"average must lie from 0 to below 1, not {self.average}.", param="average")

    def rate_at(self, step: int, steps: int) -> float:
        """The share of the peak learning rate at optimiser step `step` (0-based) of `steps` in all."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        low = self.final_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
