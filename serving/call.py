"""Call: one HTTP request as everything behind it knows it, from its headers to its last byte.

The observer makes it, the guard says whose it is, the routes add what was asked, the audit log reads it at the end.
It travels in a context variable, so that a log line written anywhere below the request carries its id.
Holds nothing that a film or a caller said: names of models and operations, digests, codes.
"""

from __future__ import annotations

import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import Headers

from foundation.errors import DeadlineExceeded, InvalidRequest

DEADLINE_HEADER = "X-Deadline-Ms"
_LONGEST_MS = 24 * 3600 * 1000
NOBODY = "-"


def _new_id() -> str:
    return f"req-{secrets.token_hex(8)}"


@dataclass(eq=False)
class Call:
    """deadline: on the monotonic clock, None where the caller set none. studies: pixel digests, not yet keyed."""

    id: str = field(default_factory=_new_id)
    started: float = field(default_factory=time.monotonic)
    # the guard
    caller: str = NOBODY
    # the headers
    deadline: float | None = None
    stores: bool = True
    # the routes
    operation: str = ""
    model: str = ""
    studies: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def read_headers(self, headers: Headers) -> None:
        """Take in X-Deadline-Ms and Cache-Control. Raises InvalidRequest for a deadline that is no number."""
        directives = {part.partition("=")[0].strip().lower() for part in headers.get("cache-control", "").split(",")}
        self.stores = "no-store" not in directives
        text = headers.get(DEADLINE_HEADER)
        if text is None:
            return
        if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 0 < int(text) <= _LONGEST_MS):
            raise InvalidRequest(
                f"{DEADLINE_HEADER} must be a whole number of milliseconds from 1 to {_LONGEST_MS}.", param=DEADLINE_HEADER
            )
        self.deadline = self.started + int(text) / 1000

    def within(self, limit_s: float) -> float:
        """The seconds left: `limit_s`, or less where the caller gave less. Raises DeadlineExceeded when there are none."""
        if self.deadline is None:
            return limit_s
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise self.too_late(limit_s)
        return min(limit_s, left_s)

    def too_late(self, limit_s: float) -> DeadlineExceeded:
        if self.deadline is not None:
            given_ms = round((self.deadline - self.started) * 1000)
            return DeadlineExceeded(f"No answer within the {given_ms} ms of {DEADLINE_HEADER}. Allow more, or send less.")
        return DeadlineExceeded(f"No answer within {limit_s:g} seconds. Try again later, or send less at once.")

    def note(self, operation: str, model: str) -> None:
        self.operation, self.model = operation, model

    def note_study(self, digest: str) -> None:
        if digest and digest not in self.studies:
            self.studies.append(digest)


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def current_call() -> Call:
    """The call this code runs for; a fresh one outside of any."""
    return _current.get() or Call()


def current_id() -> str:
    """For log lines: the id of the call, "-" outside of any."""
    call = _current.get()
    return NOBODY if call is None else call.id


def enter(call: Call) -> None:
    """Everything this task does from here on, and every task it starts, is done for `call`."""
    _current.set(call)
