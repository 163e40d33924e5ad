"""Progress of a stage: its running losses and validation scores, on the terminal and for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOW_EACH = 50  # steps
KEPT = 0.98  # of a running loss, each step


class Progress:
    """steps: of the whole stage; first_step: where this sitting begins."""

    def __init__(self, stage: str, batch: int, first_step: int, steps: int, board: SummaryWriter) -> None:
        self._stage, self._batch, self._first_step, self._steps, self._board = stage, batch, first_step, steps, board
        self._started = time.monotonic()
        self._losses: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Of this sitting."""
        return time.monotonic() - self._started

    def note(self, step: int, parts: Mapping[str, Tensor]) -> None:
        """The losses of a step, by objective; told now and then."""
        for name, part in parts.items():
            now = float(part.detach())
            self._losses[name] = KEPT * self._losses.get(name, now) + (1 - KEPT) * now
        if step % SHOW_EACH and step != self._steps - 1:
            return
        speed = (step - self._first_step + 1) * self._batch / self.seconds
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self._losses.items())
        print(f"{self._stage} {step}/{self._steps}  {speed:.0f} films/s  {shown}", flush=True)
        for name, value in self._losses.items():
            self._board.add_scalar(f"{self._stage}/{name}", value, step)

    def tell(self, step: int, scores: Mapping[str, float]) -> None:
        """Validation scores after so many steps."""
        print(f"{self._stage} val {step}  " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
        for name, value in scores.items():
            self._board.add_scalar(f"{self._stage}/val {name}", value, step)
