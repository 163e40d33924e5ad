"""Acceptor: connections from a listener to whoever can take them. Where none can be had or given, it waits a moment.

An error that lasts (no open file left, say) is tried again ever less often and told once a while, so that it costs neither
the processor nor the log.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger("serving.acceptor")
_AT_ONCE = 64
RETRY_S, LONGEST_RETRY_S = 0.05, 1.0
TELL_EACH_S = 30.0


class Acceptor:
    """listener: not blocking. hand: gives a connection on; False where nobody can take it now."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: socket.socket, hand: Callable[[socket.socket], bool]) -> None:
        self._loop, self._listener, self._hand = loop, listener, hand
        self._held: socket.socket | None = None  # accepted, and nobody could take it yet
        self._is_over = False
        self._refused_s = 0.0  # the pause after the last error
        self._told: float | None = None  # when an error was last told, by the loop's clock

    def start(self) -> None:
        if not self._is_over:
            self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Nobody new comes in: the port is closed."""
        self._is_over = True
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        if self._held is not None:
            self._held.close()

    def _accept(self) -> None:
        """Hand on whoever waits."""
        for _ in range(_AT_ONCE):
            try:
                connection = self._held or self._listener.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._refused_s = min(LONGEST_RETRY_S, 2 * self._refused_s or RETRY_S)
                self._tell(error)
                self._pause(self._refused_s)
                return
            self._held = connection
            self._refused_s = 0.0
            if not self._hand(connection):
                self._pause(RETRY_S)
                return
            self._held = None
            connection.close()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._loop.call_later(seconds, self.start)

    def _tell(self, error: OSError) -> None:
        now = self._loop.time()
        if self._told is None or now - self._told >= TELL_EACH_S:
            self._told = now
            log.error("no connection can be accepted (%s); trying again", error.strerror or type(error).__name__)
