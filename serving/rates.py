"""Rate limits per key: so many requests a minute, a quarter of them at once, and the exact second to come back.

The generic cell rate algorithm: a key's whole state is one number, the time at which its bucket would be full again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from foundation.errors import Overloaded

_BURST_SHARE = 4


class RateLimiter:
    """One for all keys. clock: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def admit(self, key_id: str, per_minute: int) -> None:
        """Count one request of this key; 0 a minute is no limit. Raises Overloaded with the time of the next free place."""
        if not per_minute:
            return
        now = self._clock()
        interval_s = 60.0 / per_minute
        burst = max(1, per_minute // _BURST_SHARE)
        full_at = max(now, self._full_again(key_id, now))
        wait_s = full_at - now - (burst - 1) * interval_s
        if wait_s > 1e-9:
            raise Overloaded(
                f"This key may send {per_minute} requests a minute, {burst} of them at once. "
                "Try again after the time in Retry-After.",
                retry_after_s=wait_s,
            )
        self._note(key_id, full_at + interval_s)

    def _full_again(self, key_id: str, now: float) -> float:
        return self._full_at.get(key_id, now)

    def _note(self, key_id: str, full_at: float) -> None:
        self._full_at[key_id] = full_at
