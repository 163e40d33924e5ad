"""EngineLink: the front process's hold on the engine process. Requests go out, Outcomes come back to who asked.

An engine that dies or hangs is replaced; everyone who waited for it is told so at once. Knows nothing of films or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from foundation.errors import (
    CheckpointError,
    CheckpointNotFound,
    CheckpointRefused,
    EngineUnavailable,
    InvalidRequest,
    VesaliusError,
)
from serving.arena import Arena
from serving.config import EngineConfig
from serving.link import Link
from serving.spawn import end, kill, spawn
from serving.transport import AsyncChannel, PeerLostError, outcome_from_plain

log = logging.getLogger("serving.engine")
_REFUSALS = (CheckpointNotFound, CheckpointRefused, InvalidRequest)
_LONGEST_PAUSE_S = 30.0
ARENA_BYTES = 1 << 26
SPINS = 20_000  # of a thread of torch's team between two operations, some 0.4 ms; GNU's own 300,000 would keep a core for 6 ms


@dataclass(eq=False)
class _Running:
    process: asyncio.subprocess.Process
    channel: AsyncChannel


class EngineLink(Link):
    """module: what is run as the engine process; tests put another one there."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        start_limit_s: float = 300.0,
        hang_limit_s: float = 120.0,
        module: str = "serving.engine_process",
    ) -> None:
        self.facts: Mapping[str, Any] | None = None  # EngineFacts as plain data; None until the first start
        self.last_forward: float | None = None  # monotonic
        self.restarts = 0
        self.rows: dict[str, Counter[str]] = {"withdrawn": Counter(), "forwarded": Counter()}  # see withdrawals.py
        self.config = config  # what the next engine is opened with
        self._start_limit_s = start_limit_s
        self._hang_limit_s = hang_limit_s
        self._module = module
        super().__init__(Arena.create(ARENA_BYTES))
        self._running: _Running | None = None
        self._up = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_up(self) -> bool:
        return self._running is not None

    @property
    def channel(self) -> AsyncChannel | None:
        return None if self._running is None else self._running.channel

    async def start(self) -> None:
        """Start the engine and wait until it answers. Raises why it cannot: CheckpointError, EngineUnavailable."""
        await self._launch()
        for task in (self._keep_alive(), self._watch()):
            self._tasks.add(asyncio.create_task(task))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        running, self._running = self._running, None
        self._fail_all()
        if running is not None:
            await end(running.process, running.channel)
        self._free_all()
        self._arena.close()

    async def wait_up(self, limit_s: float) -> bool:
        """Whether the engine runs, within this time."""
        if self.is_up:
            return True
        try:
            await asyncio.wait_for(self._up.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    async def _launch(self) -> None:
        process, channel = await spawn(self._module, _waiting(), self._arena)
        try:
            self.facts = await self._greeted(channel)
        except BaseException:
            await end(process, channel, patience_s=0.0)
            raise
        self.last_forward = self._last_heard = time.monotonic()  # the engine's own check
        self._running = _Running(process, channel)
        self._up.set()

    async def _greeted(self, channel: AsyncChannel) -> Mapping[str, Any]:
        """Tell a new engine what to open; its facts. Raises as `start`."""
        try:
            async with asyncio.timeout(self._start_limit_s):
                await channel.send({"kind": "open", "config": asdict(self.config)})
                greeting = await channel.receive()
        except (PeerLostError, TimeoutError):
            raise EngineUnavailable("The engine could not start; the server's log says more.") from None
        if greeting["kind"] != "hello":
            raise _refusal(greeting)
        facts: Mapping[str, Any] = greeting["facts"]
        return facts

    async def _keep_alive(self) -> None:
        """Read what the engine says; when it is gone, tell everyone and start another."""
        pause_s = 0.0
        while True:
            if self._running is not None:
                await self._listen(self._running)
                log.warning("the engine was lost; starting another")
                self.restarts += 1
            try:
                await asyncio.sleep(pause_s)
                await self._launch()
                pause_s = 1.0
            except VesaliusError as error:
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s + 1)
                log.error("the engine does not start (%s); trying again in %.0f s", error.code, pause_s)

    async def _listen(self, running: _Running) -> None:
        try:
            while True:
                message = await running.channel.receive()
                self._last_heard = time.monotonic()
                if message["kind"] == "beat":
                    self.last_forward = self._last_heard
                    for name, counted in self.rows.items():
                        counted.update(message.get(name, {}))
                elif message["kind"] == "outcome":
                    outcome = outcome_from_plain(message["outcome"])
                    self._free_up_to(outcome.request_id)
                    self._deliver(outcome)
        except PeerLostError:
            self._running = None
            self._up.clear()
            kill(running.process)
            running.channel.close()
            self._fail_all()
            await running.process.wait()
            self._free_all()  # only now can nobody read them any more

    async def _watch(self) -> None:
        """Kill an engine that has said nothing for too long while someone waits."""
        while True:
            await asyncio.sleep(min(1.0, self._hang_limit_s / 4))
            silent_s = time.monotonic() - self._last_heard
            if self._waiting and self._running is not None and silent_s > self._hang_limit_s:
                log.error("the engine has said nothing for %.0f s; killing it", silent_s)
                kill(self._running.process)


def _waiting() -> dict[str, str]:
    """How long idle threads of the engine spin: over the gaps within a forward, not while front and decoder need the core."""
    return {} if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() else {"GOMP_SPINCOUNT": str(SPINS)}


def _refusal(greeting: Mapping[str, Any]) -> VesaliusError:
    kind = next((one for one in _REFUSALS if one.code == greeting.get("code")), CheckpointError)
    return kind(str(greeting.get("message", "")))
