"""serve: the whole server from one call. Decode processes and the engine first, then the API over them.

    serve(ServerConfig(port=8000))                 until Ctrl-C
    with background(ServerConfig(port=0)) as url:  on a thread, for tools and tests

It listens only once the model is open and has answered its own check. No torch is imported in this process.
"""

from __future__ import annotations

import asyncio
import queue
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from foundation.errors import EngineUnavailable, InvalidRequest
from serving.api.app import create_app
from serving.api.trail import Trail
from serving.audit import AuditLog
from serving.auth import check_bind
from serving.config import ServerConfig
from serving.event_loop import run_loop
from serving.forwarding import ForwardingGateway
from serving.gateway import Gateway
from serving.home import home_folder
from serving.hub_link import HubLink
from serving.keys import KEYS_FILE, ApiKey, KeyFile, KeyRing
from serving.ledger import Ledger
from serving.worker import Worker

Announce = Callable[[str], None]


class Stoppable(Protocol):
    """What serves; it ends soon after `should_exit` is set."""

    should_exit: bool


def serve(config: ServerConfig, announce: Announce = print) -> None:
    """Serve until interrupted. announce: told where it listens, once it does. Raises VesaliusError if it cannot start."""
    run_loop(run(config, lambda url, _: announce(f"Vesalius listens on {url} (research use; not a medical device)")))


async def run(config: ServerConfig, on_ready: Callable[[str, Stoppable], None]) -> None:
    """Start, serve, and on the way out let what runs finish (`drain_s`), then end every process."""
    if config.workers > 1:
        from serving.fronts import run_fronts

        await run_fronts(config, on_ready)
        return
    ring = key_ring(config)
    check_bind(config.host, ring)
    with listen(config) as listener:
        app = assembled(config, ring)
        async with app.router.lifespan_context(app):
            server = Server(uvicorn_config(config, app))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if server.started:
                on_ready(url_of(config, listener), server)
            await serving


def assembled(config: ServerConfig, ring: KeyRing, link: HubLink | None = None, ledger: Ledger | None = None) -> FastAPI:
    """The app with all that stands behind it, which its lifespan starts and ends. Raises VesaliusError, as that does.

    link, ledger: of one of several fronts, to what it shares with the others.
    """
    trail = Trail(AuditLog(config.home), "server" if ledger is None else f"worker {ledger.number}")
    worker = Worker(config, link)
    chat = config.chat_backend
    forwarding = ForwardingGateway(worker, chat, config.engine.findings_adapter) if chat is not None else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await worker.start()
        try:
            trail.opened()
            yield
        finally:
            if forwarding is not None:
                await forwarding.close()
            await worker.close()
            trail.close()

    gateway: Gateway = forwarding or worker
    return create_app(gateway, limits=config.limits, keys=ring, trail=trail, lifespan=lifespan, ledger=ledger)


class Server(uvicorn.Server):
    """uvicorn that drains on SIGTERM and Ctrl-C and then returns, so that every process is ended and the log closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


def key_ring(config: ServerConfig) -> KeyRing:
    """The keys of the home folder, the operator's and the page's."""
    given = [ApiKey.given(config.api_key, "operator")] if config.api_key is not None else []
    if config.page_key is not None:
        given.append(ApiKey.given(config.page_key, "page", ("infer",)))
    return KeyRing(KeyFile(home_folder(config.home) / KEYS_FILE), given, guards=config.api_key is not None)


@contextmanager
def background(config: ServerConfig) -> Iterator[str]:
    """The address of a server that runs on a thread for the length of the block."""
    events: queue.SimpleQueue[tuple[str, Stoppable] | BaseException] = queue.SimpleQueue()

    def body() -> None:
        try:
            run_loop(run(config, lambda url, server: events.put((url, server))))
        except BaseException as error:  # handed to the waiting thread, which raises it
            events.put(error)

    thread = threading.Thread(target=body, daemon=True, name="vesalius-server")
    thread.start()
    event = events.get()
    if isinstance(event, BaseException):
        raise event
    url, server = event
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=config.drain_s + 10)
        if thread.is_alive():
            raise EngineUnavailable("The server did not stop in time.")


def listen(config: ServerConfig) -> socket.socket:
    """Take the port before anything is loaded, so that a taken one is known at once."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host.strip("[]"), config.port), family=family, backlog=2048)
        # NOTE: asyncio does not see that these connections are TCP; without this an answer's second part waits 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError:
        raise InvalidRequest(
            f"Port {config.port} on '{config.host}' cannot be used: it is taken or not allowed. Choose another.",
            param="port",
        ) from None


def uvicorn_config(config: ServerConfig, app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,  # logging is set up once a process, by `logs.configure`
        ssl_certfile=config.tls.certificate if config.tls else None,
        ssl_keyfile=config.tls.key if config.tls else None,
        server_header=False,
        proxy_headers=False,  # nothing here asks who stands behind a proxy
        lifespan="off",
        timeout_graceful_shutdown=int(config.drain_s),
    )


def url_of(config: ServerConfig, listener: socket.socket) -> str:
    host = f"[{config.host}]" if ":" in config.host and not config.host.startswith("[") else config.host
    return f"{'https' if config.tls else 'http'}://{host}:{listener.getsockname()[1]}"
