"""Asking: requests put to a link with patience. An engine that is being replaced is waited for, a request lost with one is
asked again, and which adapters are not to be asked is remembered over the engine's life.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from serving.gateway import next_request_id
from serving.messages import Outcome, Request

if TYPE_CHECKING:
    from serving.engine_link import EngineLink
    from serving.fleet import Fleet
    from serving.hub_link import HubLink


class _LostUnheardError(Exception):
    """The engine was lost before it said anything about a request, so asking again repeats nothing."""


async def _nobody() -> None:
    """There is nobody to be told."""


class Asking:
    """patience_s: how long a request may wait for an engine that is being started. on_change: told, and awaited, when the
    link's config says something else of adapters, before the engine is asked and after it has answered.
    """

    def __init__(
        self, link: EngineLink | Fleet | HubLink, patience_s: float, on_change: Callable[[], Awaitable[None]] = _nobody
    ) -> None:
        self._link = link
        self._patience_s = patience_s
        self._on_change = on_change
        self._asking_again = asyncio.Lock()

    async def administer(self, request: Request) -> Outcome:
        """Load or unload. An unloaded adapter is remembered, so that an engine started anew knows of it."""
        name = request.adapter or ""
        was_unloaded = name in self._link.config.unloaded
        if request.operation == "unload":
            await self._mark(name, is_unloaded=True)  # first: whoever asks from here on is told so
        outcome = await self.ask(request)
        await self._mark(name, is_unloaded=was_unloaded if outcome.is_error else request.operation == "unload")
        return outcome

    async def _mark(self, name: str, *, is_unloaded: bool) -> None:
        others = set(self._link.config.unloaded) - {name}
        unloaded = others | {name} if is_unloaded else others
        self._link.config = replace(self._link.config, unloaded=tuple(sorted(unloaded)))
        await self._on_change()

    async def ask(self, request: Request) -> Outcome:
        async with aclosing(self.stream(request)) as outcomes:
            async for outcome in outcomes:
                if outcome.is_final:
                    return outcome
        raise AssertionError("unreachable")

    async def stream(self, request: Request) -> AsyncGenerator[Outcome, None]:
        """An engine that is being replaced is waited for; a request lost with one before its first piece is asked again.

        Once, and one such request at a time: if it was the one that killed the engine, it takes no other with it.
        """
        await self._link.wait_up(self._patience_for(request))
        try:
            async with aclosing(self._stream_once(request)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
            return
        except _LostUnheardError:
            pass
        async with self._asking_again:
            await self._link.wait_up(self._patience_for(request))
            async with aclosing(self._stream_once(replace(request, id=next_request_id()), is_last=True)) as outcomes:
                async for outcome in outcomes:
                    yield outcome

    async def _stream_once(self, request: Request, *, is_last: bool = False) -> AsyncGenerator[Outcome, None]:
        """The pieces. Raises _LostUnheardError where the engine was lost before the first one, unless this is_last."""
        answers = await self._link.ask(request)
        is_first = True
        try:
            while True:
                outcome = await answers.get()
                if is_first and answers.is_lost and not is_last:
                    raise _LostUnheardError
                yield outcome
                is_first = False
                if outcome.is_final:
                    return
        finally:
            self._link.release(answers)

    def _patience_for(self, request: Request) -> float:
        left_s = self._patience_s if request.deadline is None else request.deadline - time.monotonic()
        return max(0.0, min(left_s, self._patience_s))
