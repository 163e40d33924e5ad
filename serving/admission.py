"""Whether a request can still be answered in time, judged when it comes: better refused at once than given up later.

Pure. What goes before it, and what it takes itself, is reckoned with the pace of batches that ran (pace.py). Where the
request alone would take too long, it is DeadlineExceeded; where it is what waits before it, Overloaded, with the time after
which that would be gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from foundation.errors import DeadlineExceeded, Overloaded, VesaliusError
from serving.cost import rows_of
from serving.messages import Request
from serving.pace import Pace

SLACK = 1.25  # the pace is a mean: a request is refused only when it would be late by this factor


@dataclass(frozen=True)
class Device:
    """What answers: batches of at most `batch_rows` films at `pace`, `beside` of them at the same time."""

    pace: Pace
    batch_rows: float
    beside: int = 1

    def seconds_for(self, rows: float) -> float:
        """For one request of so many rows, in a batch of its own."""
        return self.pace.seconds_for(rows)

    def seconds_before(self, rows: float) -> float:
        """Until so many rows of others are done."""
        batches = rows / self.batch_rows
        return batches * self.pace.seconds_for(self.batch_rows) / self.beside


def refusal(request: Request, now: float, rows_before: float, device: Device) -> VesaliusError | None:
    """Why a request that has just come is not let in; None where it is, or where nothing is known yet."""
    if request.deadline is None or not device.pace.is_known or request.operation in ("chat", "load", "unload"):
        return None
    left_s = request.deadline - now
    own_s = device.seconds_for(rows_of(request))
    if own_s > SLACK * left_s:
        return DeadlineExceeded(
            f"This takes about {own_s * 1000:.0f} ms on this server, more than the deadline leaves. Allow more, or send less."
        )
    before_s = device.seconds_before(rows_before)
    if before_s + own_s > SLACK * left_s:
        return Overloaded(
            f"About {before_s * 1000:.0f} ms of work stands before this request, more than its deadline leaves. "
            "Try again after the time in Retry-After.",
            retry_after_s=before_s + own_s - left_s,
        )
    return None
