"""One of several front processes: the app of server.py over a link to the parent. The other side is fronts.py.

    parent --open (number, config)--> here --ready | failed (code, sentence)--> parent
    parent --connections, by the door--> served here
    parent --drain--> what runs finishes, then the process ends

The parent accepts connections and hands each on as a file descriptor through the door, a socket pair of its own. Ctrl-C is the
parent's to handle; SIGTERM to a front alone drains it, and the parent starts another. No torch is imported here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from foundation.errors import VesaliusError
from serving.api.service import Service
from serving.arena import Arena
from serving.config import ServerConfig
from serving.event_loop import run_loop
from serving.hub_link import HubLink
from serving.ledger import Ledger
from serving.logs import configure
from serving.server import Server, assembled, key_ring, uvicorn_config
from serving.spawn import parent_arena, parent_handles, parent_socket
from serving.transport import AsyncChannel

_LAST_CONNECTIONS_S = 1.0
_FOLLOW_EACH_S = 1.0


class FrontServer(Server):
    """A Server that listens nowhere: connections come through the door until it is closed."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._door: socket.socket | None = None
        self._joining: set[asyncio.Task[None]] = set()
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.drain)
        yield

    def open(self, door: socket.socket) -> None:
        self._door = door
        door.setblocking(False)
        asyncio.get_running_loop().add_reader(door, self._receive)

    def drain(self) -> None:
        """Take what was handed over, then no more; finish."""
        self._draining = self._draining or asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        while self._door is not None and self._receive():
            pass
        self._shut()
        if self._joining:
            await asyncio.wait(self._joining, timeout=_LAST_CONNECTIONS_S)
        self.should_exit = True

    def _receive(self) -> bool:
        """Whether there was a connection."""
        assert self._door is not None
        try:
            said, handles, _, _ = socket.recv_fds(self._door, 1, 1)
        except BlockingIOError:
            return False
        except OSError:
            said, handles = b"", []
        if not said:
            self._shut()
        for handle in handles:
            task = asyncio.create_task(self._join(socket.socket(fileno=handle)))
            self._joining.add(task)
            task.add_done_callback(self._joining.discard)
        return bool(handles)

    def _shut(self) -> None:
        """So that the parent hands nothing more to this front."""
        door, self._door = self._door, None
        if door is not None:
            asyncio.get_running_loop().remove_reader(door)
            door.close()

    async def _join(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        def make() -> asyncio.Protocol:
            made: Any = self.config.http_protocol_class
            protocol: asyncio.Protocol = made(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return protocol

        try:
            await loop.connect_accepted_socket(make, connection, ssl=self.config.ssl)
        except OSError:  # it is gone already, or speaks no TLS
            connection.close()


def main() -> None:
    configure()
    handles = parent_handles()
    arena = parent_arena()
    assert arena is not None
    run_loop(serve(parent_socket(), arena, socket.socket(fileno=handles[0]), handles[1]))


async def serve(parent: socket.socket, arena: Arena, door: socket.socket, ledger_handle: int) -> None:
    """Until told to end. Ends the process at once where the parent is gone."""
    channel = await AsyncChannel.over(parent)
    opening = await channel.receive()
    try:
        await _serve(opening, channel, arena, door, ledger_handle)
    except VesaliusError as error:
        await channel.send({"kind": "failed", "code": error.code, "message": error.message})
    finally:
        channel.close()


async def _serve(
    opening: Mapping[str, Any], channel: AsyncChannel, arena: Arena, door: socket.socket, ledger_handle: int
) -> None:
    config = ServerConfig.from_plain(opening["config"])
    ledger = Ledger(ledger_handle, opening["number"])
    servers: list[FrontServer] = []

    def drain() -> None:
        for server in servers:
            server.drain()

    link = HubLink(channel, arena, config.engine, on_drain=drain, on_lost=_end_at_once)
    app = assembled(config, key_ring(config), link, ledger)
    async with app.router.lifespan_context(app):
        server = FrontServer(uvicorn_config(config, app))
        servers.append(server)
        serving = asyncio.create_task(server.serve(sockets=[]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        server.open(door)
        following = asyncio.create_task(_follow(app.state.service))
        await channel.send({"kind": "ready"})
        await serving
        following.cancel()


async def _follow(service: Service) -> None:
    """Keep this front's part of the metrics up to date, since another may be asked for the sum."""
    while True:
        await asyncio.sleep(_FOLLOW_EACH_S)
        service.metrics.follow(service.gateway.readiness())


def _end_at_once() -> None:
    logging.getLogger("serving.front").error("the parent is gone")
    os._exit(1)  # the decoders end when their sockets close


if __name__ == "__main__":
    main()
