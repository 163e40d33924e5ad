"""DecodeLimit: how long a decoder may take over one film: seconds of processor, and many more of the clock.

A decoder that is given no processor is slow through no fault of its film. So a film is refused for what was spent on it; of
one that takes too long all the same, nobody can say whose fault it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from foundation.errors import DeadlineExceeded, FilmUnreadable, VesaliusError
from serving.spawn import processor_s

_SOONEST_S = 0.05


class DecodeLimit:
    """Runs from where it is made to `stop`. kill: ends the decoder, once `passed` says why."""

    def __init__(self, process_id: int, limit_s: float, wall_limit_s: float, kill: Callable[[], None]) -> None:
        self.passed: VesaliusError | None = None
        self._process_id, self._kill = process_id, kill
        self._limit_s, self._wall_limit_s = limit_s, wall_limit_s
        self._since, self._spent_before_s = time.monotonic(), processor_s(process_id)
        self._timer = self._look_in(min(limit_s, wall_limit_s))

    def stop(self) -> None:
        self._timer.cancel()

    def _look_in(self, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(max(_SOONEST_S, seconds), self._look)

    def _look(self) -> None:
        left_s = self._limit_s - (processor_s(self._process_id) - self._spent_before_s)
        wall_left_s = self._wall_limit_s - (time.monotonic() - self._since)
        if left_s <= 0:
            self.passed = FilmUnreadable(
                f"The film took more than {self._limit_s:g} seconds of processor to decode, and was given up. "
                "Send it uncompressed, or fewer frames."
            )
        elif wall_left_s <= 0:
            self.passed = DeadlineExceeded(
                f"The film was not decoded within {self._wall_limit_s:g} seconds, and was given up. Try again later, or send "
                "it uncompressed."
            )
        if self.passed is None:
            self._timer = self._look_in(min(left_s, wall_left_s))
        else:
            self._kill()
