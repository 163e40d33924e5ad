"""Fronts: several front processes before the engines of one server (`serve --workers N`).

    parent (here)   the port, the engines (worker.py), the Hub, one Ledger; no route, no film but on its way
      front 1..N    front_process.py: routes, guard, limits, audit, and decode processes of its own

The parent accepts and hands each connection to the next front in turn, so they share evenly whatever the kernel prefers. A
front that is lost takes its own connections with it; connections that come meanwhile go to the others, and another front is
started in its place. All of them end with the parent.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from prometheus_client.multiprocess import mark_process_dead

from foundation.errors import EngineUnavailable, VesaliusError
from serving.acceptor import Acceptor
from serving.api.trail import Trail
from serving.arena import Arena
from serving.audit import AuditLog
from serving.auth import check_bind
from serving.config import ServerConfig
from serving.engine_link import ARENA_BYTES
from serving.http_errors import AuditUnavailable
from serving.hub import Hub, Peer
from serving.ledger import Ledger
from serving.metrics import FOLDER_VARIABLE
from serving.server import Stoppable, key_ring, listen, url_of
from serving.spawn import kill, no_process, spawn
from serving.together import together
from serving.worker import engines

log = logging.getLogger("serving.fronts")
_MODULE = "serving.front_process"
_LOOK_EACH_S = 0.05
_SILENT_S, _HANG_LIMIT_S = 3.0, 30.0  # a front says something each second
_LONGEST_PAUSE_S = 10.0
_END_S = 5.0  # beyond the drain, until a front is killed


async def run_fronts(config: ServerConfig, on_ready: Callable[[str, Stoppable], None]) -> None:
    """As `server.run`, with several fronts."""
    check_bind(config.host, key_ring(config))
    with listen(config) as listener, _metrics_folder() as folder:
        trail = Trail(AuditLog(config.home))
        link = engines(config)
        try:
            await link.start()
            trail.opened()
            try:
                async with _telling(Hub(link, config.restart_patience_s)) as hub:
                    fronts = Fronts(config, listener, hub, trail, folder)
                    await fronts.run(lambda: on_ready(url_of(config, listener), fronts))
            finally:
                trail.close()
        finally:
            await link.close()


@dataclass(eq=False)
class _Front:
    """One process. serving: until its channel closes."""

    number: int
    process: asyncio.subprocess.Process
    peer: Peer
    door: socket.socket
    serving: asyncio.Task[None]
    is_buried: bool = False


class Fronts:
    """folder: where the fronts keep their counts. should_exit: set it, from any thread, to have all of them drain and end."""

    def __init__(self, config: ServerConfig, listener: socket.socket, hub: Hub, trail: Trail, folder: str) -> None:
        self.should_exit = False
        self._config, self._listener, self._hub, self._trail, self._folder = config, listener, hub, trail, folder
        self._ledger = Ledger.create()
        self._living: dict[int, _Front] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._last_given = 0
        self._acceptor: Acceptor | None = None

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Raises why a front cannot start."""
        numbers = range(1, self._config.workers + 1)
        try:
            with self._signals():
                await together(self._hire(number) for number in numbers)
                self._keepers = [asyncio.create_task(self._keep(number)) for number in numbers]
                self._listener.setblocking(False)
                self._acceptor = Acceptor(asyncio.get_running_loop(), self._listener, self._hand)
                self._acceptor.start()
                on_ready()
                while not self.should_exit:
                    await asyncio.sleep(_LOOK_EACH_S)
                    self._end_who_hangs()
                await self._drain()
        finally:
            await self._end_all()
            self._ledger.close()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _told_to_end(self) -> None:
        if self.should_exit:  # asked a second time
            for front in self._living.values():
                kill(front.process)
        self.should_exit = True

    # Lives

    async def _hire(self, number: int) -> None:
        """Start a front and wait until it serves. Raises VesaliusError where it cannot."""
        arena = Arena.create(ARENA_BYTES)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            arena.close()
            raise no_process(_MODULE, error) from None
        ours.setblocking(False)
        try:
            with theirs:
                handles = (theirs.fileno(), self._ledger.handle)
                process, channel = await spawn(_MODULE, {FOLDER_VARIABLE: self._folder}, arena, handles)
        except BaseException:
            ours.close()
            arena.close()
            raise
        peer = Peer(channel, arena, asyncio.get_running_loop().create_future())
        front = _Front(number, process, peer, ours, asyncio.create_task(self._hub.serve(peer)))
        try:
            channel.post({"kind": "open", "number": number, "config": asdict(self._front_config)})
            await asyncio.wait({front.serving, peer.has_started}, timeout=self._start_limit_s, return_when="FIRST_COMPLETED")
            if not peer.has_started.done():
                raise EngineUnavailable("A front process could not start; the server's log says more.")
            peer.has_started.result()
        except BaseException:
            await self._bury(front)
            raise
        self._living[number] = front

    @property
    def _front_config(self) -> ServerConfig:
        """One front's: what may wait to be decoded is shared out; the limits of requests hold for all together."""
        waiting = -(-self._config.decode.max_waiting // self._config.workers)
        return replace(self._config, workers=1, decode=replace(self._config.decode, max_waiting=waiting))

    @property
    def _start_limit_s(self) -> float:
        return 2 * self._config.decode.start_limit_s

    async def _keep(self, number: int) -> None:
        """Start another whenever the front of this number is lost."""
        pause_s = 0.0
        while True:
            front = self._living.get(number)
            if front is not None:
                await asyncio.wait({front.serving})
                await self._bury(front)
                del self._living[number]
                if self.should_exit:
                    return
                log.warning("worker %d was lost; starting another", number)
                self._note(f"lost worker {number}")
                pause_s = 0.0
            try:
                await asyncio.sleep(pause_s)
                await self._hire(number)
            except VesaliusError as error:
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s + 1)
                log.error("worker %d does not start (%s); trying again in %.0f s", number, error.code, pause_s)

    def _note(self, what: str) -> None:
        with suppress(AuditUnavailable):  # its log line says so, and every front refuses by itself
            self._trail.note(what)

    async def _bury(self, front: _Front) -> None:
        """End what may be left of it, and give back what it held."""
        kill(front.process)
        front.door.close()
        front.peer.channel.close()
        await front.process.wait()
        await asyncio.wait({front.serving})
        if front.is_buried:
            return
        front.is_buried = True
        if front.peer.has_started.done() and not front.peer.has_started.cancelled():
            front.peer.has_started.exception()  # its hirer may have left: mark it as seen
        front.peer.arena.close()
        self._ledger.wipe(front.number)
        mark_process_dead(front.process.pid, self._folder)

    def _end_who_hangs(self) -> None:
        for front in self._living.values():
            if time.monotonic() - front.peer.last_heard > _HANG_LIMIT_S:
                log.error("worker %d has said nothing for %.0f s; killing it", front.number, _HANG_LIMIT_S)
                kill(front.process)

    async def _drain(self) -> None:
        """Nobody new comes in; what runs may finish."""
        self._shut()
        for front in self._living.values():
            front.peer.channel.post({"kind": "drain"})
        serving = [front.serving for front in self._living.values()]
        if serving:
            await asyncio.wait(serving, timeout=self._config.drain_s + _END_S)

    async def _end_all(self) -> None:
        self.should_exit = True
        self._shut()
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(self._bury(front) for front in self._living.values()))
        self._living.clear()

    # Connections

    def _shut(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()

    def _hand(self, connection: socket.socket) -> bool:
        """Give it to the next front in turn that can take it; False where none can."""
        for number in sorted(self._living, key=self._turn):
            try:
                socket.send_fds(self._living[number].door, [b"c"], [connection.fileno()])
            except OSError:
                continue
            self._last_given = number
            return True
        return False

    def _turn(self, number: int) -> tuple[bool, bool, int]:
        """Smaller goes first: the next in turn, and a front that has fallen silent last."""
        silent_s = time.monotonic() - self._living[number].peer.last_heard
        return silent_s > _SILENT_S, number <= self._last_given, number


@asynccontextmanager
async def _telling(hub: Hub) -> AsyncIterator[Hub]:
    task = asyncio.create_task(hub.keep_telling())
    try:
        yield hub
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def _metrics_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="vesalius-metrics-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
