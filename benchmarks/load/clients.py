"""Clients: closed loop (each asks again when answered) and open loop (Poisson arrivals), over keep-alive connections.

Plain asyncio streams and requests made beforehand, because the clients share the machine with the server they measure.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.load.films import Ask

PATIENCE_S = 60.0


@dataclass
class Tally:
    """What came of a run. latencies_s: of good answers, in order of their end. lost: good films without a good answer.

    left: requests whose callers meant to leave early; in_time: of those, how many were well answered before they would have.
    """

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    refused: int = 0  # broken films, rightly refused
    busy: int = 0  # 429 and 504 to good films
    lost: int = 0
    left: int = 0
    in_time: int = 0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def quantile(self, share: float) -> float:
        """Seconds; nan without an answer."""
        ranked = sorted(self.latencies_s)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")

    def note(self, asked: Ask, status: int, took_s: float) -> None:
        if asked.is_broken:
            self.refused += 400 <= status < 500
            self.lost += not 400 <= status < 500
        elif status == 200:
            self.latencies_s.append(took_s)
        elif status in (429, 504):
            self.busy += 1
        else:
            self.lost += 1


class Connection:
    """One keep-alive connection; opened when first asked, and again after it was closed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, asked: Ask) -> int:
        """The status of the answer, once all of it is here; 0 where the connection was lost."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            writer.write(asked.raw)
            await writer.drain()
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            await reader.readexactly(_length(head))
            return int(head[9:12])
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            self.close()
            return 0

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed_loop(
    url: str, pick: Callable[[], Ask], clients: int, seconds: float, *, leaving: float = 0.0, leave_after_s: float = 0.0
) -> Tally:
    """Each client asks again as soon as it is answered. leaving: the share of requests whose caller leaves early.

    leave_after_s: how long such a caller stays; it comes back on a new connection.
    """
    tally, begun = Tally(), time.perf_counter()
    draw = random.Random(0)

    async def client() -> None:
        connection = Connection(url)
        while time.perf_counter() - begun < seconds:
            asked, start = pick(), time.perf_counter()
            if draw.random() < leaving:
                status = await _leave(connection, asked, draw.random() * leave_after_s)
                tally.left += 1
                tally.in_time += status == 200
                continue
            status = await connection.send(asked)
            tally.note(asked, status, time.perf_counter() - start)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    tally.seconds = time.perf_counter() - begun
    return tally


async def open_loop(url: str, pick: Callable[[], Ask], rate: float, seconds: float, seed: int = 0) -> Tally:
    """Requests at Poisson times whether or not earlier ones are answered; a latency counts from its arrival."""
    tally, idle, draw = Tally(), list[Connection](), random.Random(seed)
    begun, at, running = time.perf_counter(), 0.0, set[asyncio.Task[None]]()

    async def one(due: float) -> None:
        connection = idle.pop() if idle else Connection(url)
        asked = pick()
        status = await connection.send(asked)
        tally.note(asked, status, time.perf_counter() - due)
        idle.append(connection)

    while (at := at + draw.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        task = asyncio.create_task(one(begun + at))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    tally.seconds = time.perf_counter() - begun
    for connection in idle:
        connection.close()
    return tally


def in_turn(asks: Sequence[Ask], *, broken: Sequence[Ask] = (), share: float = 0.0) -> Callable[[], Ask]:
    """One request after another; now and then, by `share`, a broken one instead."""
    state = {"number": -1}
    draw = random.Random(1)

    def pick() -> Ask:
        state["number"] += 1
        source = broken if draw.random() < share else asks
        return source[state["number"] % len(source)]

    return pick


async def _leave(connection: Connection, asked: Ask, after_s: float) -> int:
    """The status of an answer that came before; 0 without one."""
    task = asyncio.create_task(connection.send(asked))
    await asyncio.wait({task}, timeout=after_s)
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    connection.close()
    return 0 if task.cancelled() else task.result()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
