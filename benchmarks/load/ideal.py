"""The most that can be seen where callers leave: a server that wastes nothing, first come first served. Pure; no clock.

Whoever leaves before the answer costs nothing more from that moment on. But a server cannot know who is about to leave: those
who are answered before they would have left take their share of it and are no callers who stayed, and the faster the server,
the more of them there are. What is left for those who stay is what a real server's figure is to be read against.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count

_TO_SAMPLE = 20_000  # events
FOREVER = float("inf")


@dataclass(frozen=True)
class Ideal:
    """Shares of the saturation that went to callers who stayed, and to those who were answered just before they left."""

    stayed: float
    in_time: float


@dataclass
class _Server:
    """Callers by number, with the time at which they leave: those who wait, in order, and those whose film is on a core."""

    free: int
    service_s: float
    waiting: dict[int, float] = field(default_factory=dict)
    running: dict[int, float] = field(default_factory=dict)

    def leave(self, number: int) -> bool:
        """Whether the caller was still there to leave."""
        if self.waiting.pop(number, None) is not None:
            return True
        return self.end(number) is not None

    def end(self, number: int) -> float | None:
        """Free the caller's core; until when it would have stayed, None where it has left before."""
        until = self.running.pop(number, None)
        self.free += until is not None
        return until

    def begin(self) -> int | None:
        """The next one's film goes on a core, if there is a free one."""
        if not self.free or not self.waiting:
            return None
        number = next(iter(self.waiting))
        self.running[number] = self.waiting.pop(number)
        self.free -= 1
        return number


def ideal(rate: float, *, clients: int, leaving: float, leave_after_s: float, cores: int = 2, seed: int = 0) -> Ideal:
    """rate: answers a second at saturation. The rest as in `clients.closed_loop`; callers come back at once."""
    draw, numbers = random.Random(seed), count()
    server = _Server(cores, cores / rate)
    events = [(0.0, next(numbers), "comes") for _ in range(clients)]
    stayed = in_time = 0
    now = 0.0
    for _ in range(_TO_SAMPLE):
        now, number, kind = heapq.heappop(events)
        if kind == "comes":
            until = now + draw.random() * leave_after_s if draw.random() < leaving else FOREVER
            server.waiting[number] = until
            if until < FOREVER:
                heapq.heappush(events, (until, number, "leaves"))
        elif kind == "leaves" and server.leave(number):
            heapq.heappush(events, (now, next(numbers), "comes"))
        elif kind == "ends" and (ended := server.end(number)) is not None:
            stayed += ended == FOREVER
            in_time += ended < FOREVER
            heapq.heappush(events, (now, next(numbers), "comes"))
        while (begun := server.begin()) is not None:
            heapq.heappush(events, (now + server.service_s, begun, "ends"))
    return Ideal(stayed / now / rate, in_time / now / rate)
