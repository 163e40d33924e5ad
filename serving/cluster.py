"""The same app as a Ray Serve deployment: several servers behind one address, on one machine or many. Imports ray, alone.

    caller --> Ray's proxy --> replica: the app of server.py over its own worker, decode processes and engine
                 `-- a request with the header `serve_multiplexed_model_id: ADAPTER` goes to a replica that has answered
                     through that adapter lately, so that each engine keeps few adapters resident

Batches are made behind the app, by each replica's own scheduler; Ray's `@serve.batch` would part requests by adapter.
Ray listens on this machine alone and with a token unless the operator has started a cluster (RAY_ADDRESS). What Ray's own
processes say to each other is pickled; what ours do is not.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import EngineUnavailable, InvalidRequest
from serving.auth import check_bind
from serving.config import ServerConfig
from serving.http_errors import error_response
from serving.server import assembled, key_ring, listen

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("serving.cluster")
APPLICATION = "vesalius"
ADDRESS_VARIABLE = "RAY_ADDRESS"
ONGOING = 4096  # a replica's own limits refuse earlier, and say why
_HOUSE = Path(__file__).resolve().parent.parent
_HANDED_ON = ("VESALIUS_HOME", "VESALIUS_CHAT_KEY", "HF_HUB_OFFLINE")
_ONE_REPLICA_ONLY = ("/v1/adapters/", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/cache")


@dataclass(frozen=True)
class ClusterConfig:
    """replica_cpus: cores that Ray sets aside for each replica, 0 for this machine's cores divided by the replicas.

    replica_gpus: GPUs of each, or a part of one. resident: adapters a replica is known by, as many as its engine holds.
    """

    replicas: int = 1
    replica_cpus: int = 0
    replica_gpus: float = 0.0
    resident: int = 64

    def __post_init__(self) -> None:
        for name in ("replicas", "resident"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1.", param=name)
        for name in ("replica_cpus", "replica_gpus"):
            if getattr(self, name) < 0:
                raise InvalidRequest(f"{name} must not be negative.", param=name)

    @property
    def cpus(self) -> int:
        return self.replica_cpus or max(1, (os.cpu_count() or 1) // self.replicas)


def serve_cluster(config: ServerConfig, cluster: ClusterConfig, announce: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises InvalidRequest without ray, EngineUnavailable where no replica starts."""
    check_bind(config.host, key_ring(config))
    with listen(config) as taken:  # known at once; Ray takes it when this is let go
        config = replace(config, port=taken.getsockname()[1])
    ray, serve = _imported()
    _join(ray)
    try:
        serve.start(http_options=_http_options(config))
        try:
            serve.run(deployment(config, cluster).bind(), name=APPLICATION, route_prefix="/")
        except RuntimeError:  # Ray's text names paths and may hold a config; the log has it
            log.exception("serve.run failed")
            raise EngineUnavailable("No replica of the server could be started; the log says why.") from None
        is_over = _ended_by_signal()
        scheme = "https" if config.tls else "http"
        announce(f"Vesalius listens on {scheme}://{config.host}:{config.port} (research use; not a medical device)")
        is_over.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def deployment(config: ServerConfig, cluster: ClusterConfig) -> Any:
    """The deployment, still to be bound: what `serve run` and `serve_cluster` start."""
    _, serve = _imported()
    is_alone = cluster.replicas == 1

    def build() -> ASGIApp:
        """In the replica."""

        @serve.multiplexed(max_num_models_per_replica=cluster.resident)  # type: ignore[untyped-decorator, unused-ignore]
        async def hold(adapter: str) -> str:
            """Nothing is loaded here: the engine does that when it is asked. Ray notes the name."""
            return adapter

        app = assembled(config, key_ring(config))
        return Replica(app, serve.get_multiplexed_model_id, hold, is_alone=is_alone)

    class Vesalius:
        def check_health(self) -> None:
            """Raises while the engine does not answer; Ray starts another replica when that lasts."""
            replica: Replica = self.app  # type: ignore[attr-defined]
            replica.check()

    ingress = serve.ingress(build)(Vesalius)
    return serve.deployment(
        name=APPLICATION,
        num_replicas=cluster.replicas,
        max_ongoing_requests=ONGOING,
        graceful_shutdown_timeout_s=config.drain_s,
        ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": cluster.replica_gpus, "runtime_env": _environment()},
    )(ingress)


class Replica:
    """ASGI around one replica's app: tells Ray which adapters it has used, and refuses what one of many cannot do for all.

    asked_for: the adapter the request's header names, "" for none; hold: has Ray note it. Only adapters that are there
    are noted, so that a caller cannot have others forgotten.
    """

    def __init__(
        self, app: FastAPI, asked_for: Callable[[], str], hold: Callable[[str], Awaitable[str]], *, is_alone: bool
    ) -> None:
        self._app, self._asked_for, self._hold, self._is_alone = app, asked_for, hold, is_alone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not self._is_alone and scope["method"] != "GET" and scope["path"].startswith(_ONE_REPLICA_ONLY):
                refusal = InvalidRequest(
                    "This server runs as several replicas, and the request would reach only one of them. Change the "
                    "adapters' folder, or restart the server, instead."
                )
                await error_response(refusal)(scope, receive, send)
                return
            adapter = self._asked_for()
            if adapter and any(model.name == adapter for model in self._app.state.service.gateway.models()):
                await self._hold(adapter)
        await self._app(scope, receive, send)

    def check(self) -> None:
        """Raises EngineUnavailable while no answer can be expected."""
        readiness = self._app.state.service.gateway.readiness()
        if not readiness.ready:
            raise EngineUnavailable(readiness.reason)


def _imported() -> tuple[Any, Any]:
    """Ray reads its settings when it is imported, so what we ask of it is said before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 would let anything else on the machine go first
    if not os.environ.get(ADDRESS_VARIABLE):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        # Whatever its name says: without it Ray takes 127.0.0.1 to mean the address that others reach this machine by.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        from ray import serve
    except ImportError:
        raise InvalidRequest("--cluster needs Ray Serve: pip install 'vesalius[ray]'.", param="cluster") from None
    return ray, serve


def _join(ray: Any) -> None:
    """The operator's cluster where RAY_ADDRESS names one; otherwise one of our own that only this machine can reach."""
    options: dict[str, Any] = {"log_to_driver": False}
    if not os.environ.get(ADDRESS_VARIABLE):
        options |= {"address": "local", "_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises plain ones too
        log.exception("ray.init failed")
        raise EngineUnavailable(f"Ray could not be started or joined ({type(error).__name__}); its log says why.") from None


def _environment() -> dict[str, Any]:
    """What a replica's process is told: where our code and home lie. The home and the code must be on every node."""
    variables = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    paths = [str(_HOUSE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"env_vars": {**variables, "PYTHONPATH": os.pathsep.join(paths)}}


def _http_options(config: ServerConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"host": config.host, "port": config.port}
    if config.tls:
        options |= {"ssl_certfile": config.tls.certificate, "ssl_keyfile": config.tls.key}
    return options


def _ended_by_signal() -> threading.Event:
    """Set by SIGTERM and Ctrl-C, so that replicas are ended in order."""
    is_over = threading.Event()

    def end(*_: object) -> None:
        if is_over.is_set():
            raise KeyboardInterrupt  # asked a second time
        is_over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return is_over
