"""serve: the whole server from one call. Decode processes and the engine first, then the API over them.

    serve(ServerConfig(port=8000))                 until Ctrl-C
    with background(ServerConfig(port=0)) as url:  on a thread, for tools and tests

It listens only once the model is open and has answered its own check. No torch is imported in this process.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from foundation.errors import EngineUnavailable, InvalidRequest
from serving.api.app import create_app
from serving.auth import check_bind
from serving.config import ServerConfig
from serving.worker import Worker

Announce = Callable[[str], None]


def serve(config: ServerConfig, announce: Announce = print) -> None:
    """Serve until interrupted. announce: told where it listens, once it does. Raises VesaliusError if it cannot start."""
    asyncio.run(run(config, lambda url, _: announce(f"Vesalius listens on {url} (research use; not a medical device)")))


async def run(config: ServerConfig, on_ready: Callable[[str, uvicorn.Server], None]) -> None:
    """Start, serve, and on the way out let what runs finish (`drain_s`), then end every process."""
    check_bind(config.host, config.api_key)
    with listen(config) as listener:
        worker = Worker(config)
        await worker.start()
        try:
            server = uvicorn.Server(_uvicorn_config(config, worker))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if server.started:
                on_ready(_url(config, listener), server)
            await serving
        finally:
            await worker.close()


@contextmanager
def background(config: ServerConfig) -> Iterator[str]:
    """The address of a server that runs on a thread for the length of the block."""
    events: queue.SimpleQueue[tuple[str, uvicorn.Server] | BaseException] = queue.SimpleQueue()

    def body() -> None:
        try:
            asyncio.run(run(config, lambda url, server: events.put((url, server))))
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
        return socket.create_server((config.host.strip("[]"), config.port), family=family, backlog=2048)
    except OSError:
        raise InvalidRequest(
            f"Port {config.port} on '{config.host}' cannot be used: it is taken or not allowed. Choose another.",
            param="port",
        ) from None


def _uvicorn_config(config: ServerConfig, worker: Worker) -> uvicorn.Config:
    app = create_app(worker, limits=config.limits, api_key=config.api_key)
    return uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=int(config.drain_s),
    )


def _url(config: ServerConfig, listener: socket.socket) -> str:
    host = f"[{config.host}]" if ":" in config.host and not config.host.startswith("[") else config.host
    return f"http://{host}:{listener.getsockname()[1]}"
