"""Pace: how long a batch of so many rows takes, learnt from those that ran. Pure arithmetic.

    seconds = per_row * rows + overhead

fitted by least squares in which older batches weigh ever less, so that it follows a machine whose speed changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_WARY = 1e-9
_TOLD_APART = 0.01  # how much sizes must vary, squared and over their mean, before a line through them says how they differ
OVERHEAD_SHARE = 0.1  # of a lane's time: larger batches would gain less than that, and make their rows wait longer
FEWEST_ROWS = 4  # of a lane's batch where that many wait


@dataclass(frozen=True)
class Pace:
    """Weighted sums over what ran; nothing is known while `weight` is 0. memory: the weight a batch keeps when one more ran."""

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_rows: float = 0.0
    rows_seconds: float = 0.0
    memory: float = 0.95

    def after(self, rows: float, seconds: float) -> Pace:
        """The pace once a batch of `rows` has taken `seconds`."""
        return Pace(
            self.memory * self.weight + 1.0,
            self.memory * self.rows + rows,
            self.memory * self.seconds + seconds,
            self.memory * self.rows_rows + rows * rows,
            self.memory * self.rows_seconds + rows * seconds,
            self.memory,
        )

    @property
    def is_known(self) -> bool:
        return self.weight > 0.0

    @property
    def line(self) -> tuple[float, float]:
        """(per_row, overhead), neither negative. With batches of one size alone, all of it is the rows'."""
        if not self.is_known:
            return 0.0, 0.0
        mean_rows, mean_seconds = self.rows / self.weight, self.seconds / self.weight
        through_zero = mean_seconds / mean_rows
        spread = self.rows_rows / self.weight - mean_rows**2
        if spread <= _WARY + 1e-6 * mean_rows**2:
            return through_zero, 0.0
        per_row = (self.rows_seconds / self.weight - mean_rows * mean_seconds) / spread
        if per_row <= 0.0:
            return 0.0, mean_seconds
        overhead = mean_seconds - per_row * mean_rows
        return (per_row, overhead) if overhead >= 0.0 else (through_zero, 0.0)

    def rows_for(self, overhead_share: float) -> float | None:
        """The smallest batch of whose time at most this share is overhead; None where batches of one size alone are known."""
        mean_rows = self.rows / self.weight if self.weight else 0.0
        if not self.is_known or self.rows_rows / self.weight - mean_rows**2 < _TOLD_APART * mean_rows**2:
            return None
        per_row, overhead = self.line
        if per_row <= 0.0:
            return math.inf
        return overhead / per_row * (1.0 - overhead_share) / overhead_share

    def seconds_for(self, rows: float) -> float:
        """What a batch of `rows` is expected to take; 0 while nothing is known."""
        per_row, overhead = self.line
        return per_row * rows + overhead


@dataclass
class Paces:
    """The pace of a batch on all cores, and of one on one core; and how large batches on one core should be."""

    wide: Pace = Pace()
    narrow: Pace = Pace()
    _rows: float = FEWEST_ROWS

    def note(self, rows: float, seconds: float, *, is_wide: bool) -> None:
        if is_wide:
            self.wide = self.wide.after(rows, seconds)
        else:
            self.narrow = self.narrow.after(rows, seconds)
            fitted = self.narrow.rows_for(OVERHEAD_SHARE)
            self._rows = self._rows if fitted is None else max(FEWEST_ROWS, fitted)

    def lane_rows(self, most: float) -> float:
        """What a batch on one core may cost, as far as it was last possible to tell; never more than `most`."""
        return min(most, self._rows)
