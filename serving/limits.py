"""What the server takes at most, and the gate that says 429 before it says yes to too much.

Knows nothing of HTTP beyond the numbers; `http_errors.py` turns Overloaded into 429 with Retry-After.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from foundation.errors import InvalidRequest, Overloaded

MIB = 1024 * 1024


@dataclass(frozen=True)
class ServerLimits:
    """The bounds of one request and of all requests together."""

    max_body_bytes: int = 100 * MIB
    max_images: int = 64
    max_texts: int = 256
    max_text_chars: int = 8192
    max_labels: int = 512
    max_templates: int = 32
    max_prompts: int = 4096  # labels x templates x (2 with negatives)
    max_messages: int = 128
    max_marks: int = 64  # points, and boxes, on one film
    max_tasks: int = 32  # of one analysis
    max_fields: int = 256  # of a table beside films
    max_tokens: int = 1024
    max_items_in_flight: int = 256  # films, texts and chats admitted and not yet answered
    max_bytes_in_flight: int = 512 * MIB  # bodies being read or held
    body_timeout_s: float = 60.0
    request_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if self.max_items_in_flight < 1:
            raise InvalidRequest("max_items_in_flight must be at least 1.", param="max_items_in_flight")
        if self.max_bytes_in_flight < self.max_body_bytes:
            raise InvalidRequest(
                f"max_bytes_in_flight ({self.max_bytes_in_flight}) must hold at least one body of max_body_bytes "
                f"({self.max_body_bytes}).",
                param="max_bytes_in_flight",
            )


def check_count(name: str, count: int, most: int, *, least: int = 1) -> None:
    """Refuse a list that is too short or too long, naming it."""
    if count < least:
        raise InvalidRequest(f"'{name}' needs at least {least} {'entry' if least == 1 else 'entries'}.", param=name)
    if count > most:
        raise InvalidRequest(f"'{name}' has {count} entries; at most {most} are taken at once. Split it.", param=name)


def check_texts(name: str, texts: Sequence[str], most_chars: int) -> None:
    """Refuse a text that is empty or too long, naming it."""
    for index, text in enumerate(texts):
        if not text.strip():
            raise InvalidRequest(f"'{name}[{index}]' is empty.", param=f"{name}[{index}]")
        if len(text) > most_chars:
            raise InvalidRequest(
                f"'{name}[{index}]' has {len(text)} characters; at most {most_chars} are taken.",
                param=f"{name}[{index}]",
            )


class Budget:
    """A counted resource shared by all requests: take some, or be told when to come back.

    One more request is always admitted when nothing is in flight, so a request larger than the whole
    budget waits for an empty server instead of being refused for ever.
    """

    def __init__(self, capacity: int, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.in_use = 0
        self._what = what
        self._clock = clock
        self._typical_stay_s = 1.0  # moving average of how long a holder keeps its share
        self._held_since: dict[int, float] = {}  # in order of arrival
        self._tickets = itertools.count()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Hold `amount` for the length of the block. Raises Overloaded when it does not fit."""
        self._claim(amount)
        since, ticket = self._clock(), next(self._tickets)
        self._held_since[ticket] = since
        try:
            yield
        finally:
            self._give_back(amount)
            del self._held_since[ticket]
            self._typical_stay_s += 0.2 * (self._clock() - since - self._typical_stay_s)

    def _claim(self, amount: int) -> None:
        self._check(self.in_use, amount)
        self.in_use += amount

    def _give_back(self, amount: int) -> None:
        self.in_use -= amount

    def _check(self, in_use: int, amount: int) -> None:
        if in_use and in_use + amount > self.capacity:
            raise Overloaded(
                f"The server is busy: {in_use} of {self.capacity} {self._what} are in use. "
                "Try again after the time in Retry-After.",
                retry_after_s=self.retry_after_s,
            )

    @property
    def retry_after_s(self) -> float:
        """When the oldest holder is expected to leave, between one second and one minute."""
        oldest = next(iter(self._held_since.values()), self._clock())
        return min(60.0, max(1.0, oldest + self._typical_stay_s - self._clock()))
