"""HubLink: a front process's hold on its parent, which has the engines. In the place of an EngineLink; see hub.py.

What the parent tells of the engines (`state`) is kept here; what it asks to be told is answered here. Without its parent a
front is nothing: `on_lost` ends it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from serving.arena import Arena
from serving.config import EngineConfig
from serving.link import Link
from serving.transport import AsyncChannel, PeerLostError, outcome_from_plain

BEAT_S = 1.0


class HubLink(Link):
    """on_drain: the parent wants this front to finish and end. on_lost: the parent is gone."""

    def __init__(
        self,
        channel: AsyncChannel,
        arena: Arena,
        config: EngineConfig,
        *,
        on_drain: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(arena)
        self.facts: Mapping[str, Any] | None = None
        self.last_forward: float | None = None
        self.restarts = 0
        self.is_up = False
        self.rows: dict[str, Counter[str]] = {"withdrawn": Counter(), "forwarded": Counter()}  # this front's share of the count
        self.config = config  # a new one whenever an adapter was loaded or unloaded, by whichever front
        self._elsewhere = 0  # requests of other fronts that wait
        self._channel = channel
        self._on_drain, self._on_lost = on_drain, on_lost
        self._told = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def channel(self) -> AsyncChannel | None:
        return self._channel

    def __len__(self) -> int:
        """How many requests wait, of all fronts."""
        return super().__len__() + self._elsewhere

    async def start(self) -> None:
        """Listen, and wait until the parent has said what the engines are."""
        self._tasks = {asyncio.create_task(self._listen()), asyncio.create_task(self._beat())}
        await self._told.wait()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all()

    async def wait_up(self, limit_s: float) -> bool:
        """The parent waits, for all fronts."""
        return True

    async def _listen(self) -> None:
        try:
            while True:
                self._take(await self._channel.receive())
        except PeerLostError:
            self._on_lost()

    def _take(self, message: Mapping[str, Any]) -> None:
        if message["kind"] == "outcome":
            outcome = outcome_from_plain(message["outcome"])
            self._free_up_to(outcome.request_id)
            self._deliver(outcome)
        elif message["kind"] == "state":
            self._know(message)
        elif message["kind"] == "drain":
            self._on_drain()

    def _know(self, state: Mapping[str, Any]) -> None:
        self.is_up, self.restarts = state["is_up"], state["restarts"]
        self.last_forward, self._elsewhere = state["last_forward"], state["elsewhere"]
        if "facts" in state:
            self.facts = state["facts"]
        if "unloaded" in state:
            self.config = replace(self.config, unloaded=tuple(state["unloaded"]))
            self._channel.post({"kind": "seen", "serial": state["serial"]})
        for name, counted in state.get("rows", {}).items():
            self.rows[name].update(counted)
        self._told.set()

    async def _beat(self) -> None:
        """That this front's event loop runs."""
        while True:
            self._channel.post({"kind": "beat"})
            await asyncio.sleep(BEAT_S)
