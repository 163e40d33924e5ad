"""Connections are handed on; an error that lasts is tried less and less often, and told once a while."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest

from serving.acceptor import LONGEST_RETRY_S, RETRY_S, TELL_EACH_S, Acceptor


class FakeConnection:
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class FakeListener(FakeConnection):
    """waiting: what `accept` gives, or raises, in turn; nothing left raises BlockingIOError. number: raised for ever."""

    def __init__(self) -> None:
        self.waiting: list[FakeConnection] = []
        self.number = 0
        self.tries = 0

    def fileno(self) -> int:
        return -1 if self.is_closed else 9

    def accept(self) -> tuple[FakeConnection, None]:
        self.tries += 1
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.pop(0), None


class FakeLoop:
    """A loop whose listener always has something to read, and whose clock goes as far as it is told."""

    def __init__(self) -> None:
        self.now = 0.0
        self._reader: Callable[[], None] | None = None
        self._later: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def add_reader(self, listener: FakeListener, call: Callable[[], None]) -> None:
        assert listener.fileno() >= 0
        self._reader = call

    def remove_reader(self, _: FakeListener) -> None:
        self._reader = None

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self._later.append((self.now + seconds, call))

    def run(self, seconds: float) -> None:
        """One look at the listener each hundredth of a second."""
        end = self.now + seconds
        while self.now < end:
            due = [one for one in self._later if one[0] <= self.now]
            self._later = [one for one in self._later if one[0] > self.now]
            for _, call in due:
                call()
            if self._reader is not None:
                self._reader()
            self.now += 0.01


def acceptor(hand: Callable[[Any], bool]) -> tuple[FakeLoop, FakeListener, Acceptor]:
    loop, listener = FakeLoop(), FakeListener()
    one = Acceptor(loop, listener, hand)  # type: ignore[arg-type]
    one.start()
    return loop, listener, one


def test_an_error_that_lasts_floods_neither_log_nor_processor(caplog: pytest.LogCaptureFixture) -> None:
    given: list[FakeConnection] = []
    loop, listener, _ = acceptor(lambda connection: not given.append(connection))
    listener.number = errno.EMFILE
    with caplog.at_level(logging.ERROR, "serving.acceptor"):
        loop.run(2.5 * TELL_EACH_S)
        assert len(caplog.records) == 3
        assert os.strerror(errno.EMFILE) in caplog.text
        assert listener.tries <= 2.5 * TELL_EACH_S / LONGEST_RETRY_S + 10
        listener.number, listener.waiting = 0, [FakeConnection(), FakeConnection()]
        loop.run(LONGEST_RETRY_S + 0.1)
        assert len(given) == 2
        assert all(connection.is_closed for connection in given)  # ours; whoever took it has its own
        listener.number, before = errno.EMFILE, listener.tries
        loop.run(3 * RETRY_S)
        assert listener.tries - before >= 2  # the pauses begin anew
        assert len(caplog.records) == 3


def test_a_connection_that_nobody_can_take_waits_for_somebody() -> None:
    can: list[bool] = []
    given: list[FakeConnection] = []

    def hand(connection: FakeConnection) -> bool:
        given.append(connection)
        return bool(can)

    loop, listener, one = acceptor(hand)
    first, second = FakeConnection(), FakeConnection()
    listener.waiting = [first, second]
    loop.run(5 * RETRY_S)
    assert set(given) == {first}
    assert not first.is_closed
    can.append(True)
    loop.run(2 * RETRY_S)
    assert given[-2:] == [first, second]
    assert first.is_closed
    can.clear()
    third = FakeConnection()
    listener.waiting = [third]
    loop.run(2 * RETRY_S)
    one.close()
    assert third.is_closed
    assert listener.is_closed
    seen = listener.tries
    loop.run(5.0)
    assert listener.tries == seen
