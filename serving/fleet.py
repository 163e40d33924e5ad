"""Fleet: several engines, one a device, behind the interface of one EngineLink.

A request goes to the least loaded engine; a little more load is taken where the film was seen before (its features are kept
there) or where the adapter is resident. What changes adapters, or drops what is kept, goes to all of them. An engine that is
lost leaves its work to the others until it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from foundation.errors import EngineUnavailable, InvalidRequest
from serving.cache import LruCache
from serving.config import EngineConfig
from serving.engine_link import EngineLink
from serving.gateway import next_request_id
from serving.http_errors import InternalError
from serving.link import AWAY, Answers
from serving.messages import Outcome, Request
from serving.together import together
from serving.transport import failure

T = TypeVar("T")
log = logging.getLogger("serving.fleet")
EVERYWHERE = ("load", "unload")
FILM_WORTH, ADAPTER_WORTH = 4, 2  # in requests: how much fuller an engine may be that knows the film, or the adapter
SLOWER_S = 30.0  # for how long those that have changed an adapter wait for the next to do so
_REMEMBERED = 4096
_WAIT_S = 60.0


class Fleet:
    """links: of engines over the same checkpoint and store."""

    def __init__(self, links: Sequence[EngineLink]) -> None:
        if not links:
            raise InvalidRequest("At least one device is needed.", param="devices")
        self._links = tuple(links)
        self._known: LruCache[tuple[str, ...], frozenset[int]] = LruCache(_REMEMBERED)
        self._owners: dict[int, EngineLink] = {}  # of requests under way, by id
        self._tasks: set[asyncio.Task[Any]] = set()
        self._catching_up: dict[str | None, list[asyncio.Task[None]]] = {}  # by adapter

    @classmethod
    def of(
        cls, config: EngineConfig, devices: Sequence[str], *, start_limit_s: float = 300.0, hang_limit_s: float = 120.0
    ) -> Fleet:
        """One engine a device. Engines on the processor share its cores."""
        cores = max(1, config.cores // max(1, list(devices).count("cpu")))
        configs = [replace(config, device=name, threads=cores) for name in devices]
        return cls([EngineLink(one, start_limit_s=start_limit_s, hang_limit_s=hang_limit_s) for one in configs])

    @property
    def facts(self) -> Mapping[str, Any] | None:
        return self._links[0].facts

    @property
    def config(self) -> EngineConfig:
        return self._links[0].config

    @config.setter
    def config(self, config: EngineConfig) -> None:
        """What the next engines are opened with; each keeps its device and its cores."""
        for link in self._links:
            link.config = replace(config, device=link.config.device, threads=link.config.threads)

    @property
    def last_forward(self) -> float | None:
        """Of the engine that has finished nothing for longest, so that each of them is looked after."""
        known = [link.last_forward for link in self._links if link.is_up and link.last_forward is not None]
        return min(known, default=None)

    @property
    def restarts(self) -> int:
        return sum(link.restarts for link in self._links)

    @property
    def rows(self) -> dict[str, Counter[str]]:
        """Of all engines together."""
        names = self._links[0].rows
        return {name: sum((link.rows[name] for link in self._links), Counter[str]()) for name in names}

    @property
    def is_up(self) -> bool:
        return any(link.is_up for link in self._links)

    def __len__(self) -> int:
        return sum(map(len, self._links))

    async def start(self) -> None:
        await together(link.start() for link in self._links)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links))

    async def wait_up(self, limit_s: float) -> bool:
        if self.is_up:
            return True
        waits = [asyncio.create_task(link.wait_up(limit_s)) for link in self._links]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return any(task.result() for task in done)
        finally:
            for task in waits:
                task.cancel()

    def forget(self, tenant: str, study: str) -> None:
        for link in self._links:
            link.forget(tenant, study)

    async def ask(self, request: Request) -> Answers:
        if request.operation in EVERYWHERE:
            return self._ask_all(request)
        up = [number for number, link in enumerate(self._links) if link.is_up]
        if not up:
            answers = Answers(request.id)
            answers.put(failure(request.id, EngineUnavailable(AWAY)))
            return answers
        number = min(up, key=lambda one: self._cost(one, request))
        self._remember(number, request)
        link = self._owners[request.id] = self._links[number]
        try:
            return await link.ask(request)
        except BaseException:
            self._owners.pop(request.id, None)
            raise

    def release(self, answers: Answers) -> None:
        link = self._owners.pop(answers.request_id, None)
        if link is not None:
            link.release(answers)

    def _cost(self, number: int, request: Request) -> tuple[int, float]:
        """Smaller is better; among equals the one that has been idle for longest."""
        link = self._links[number]
        load = len(link)
        load -= FILM_WORTH * any(number in (self._known.get(key) or ()) for key in _film_keys(request))
        load -= ADAPTER_WORTH * any(number in (self._known.get(key) or ()) for key in _adapter_keys(request))
        return load, link.last_forward or 0.0

    def _remember(self, number: int, request: Request) -> None:
        for key in (*_film_keys(request), *_adapter_keys(request)):
            self._known.put(key, (self._known.get(key) or frozenset()) | {number})

    def _ask_all(self, request: Request) -> Answers:
        """The first answer that came, or the first that failed. An engine that is away, is lost over it or keeps the others
        waiting costs them nothing: it is told, or told again, once it is there.
        """
        for task in self._catching_up.pop(request.adapter, ()):
            task.cancel()  # what it should have been told holds no more
        answers = Answers(request.id)
        self._background(self._gather(request, answers))
        return answers

    async def _gather(self, request: Request, answers: Answers) -> None:
        asked = {link: self._background(_last(link, request)) for link in self._links if link.is_up}
        pending, told = set(asked.values()), list[Outcome]()
        while pending:
            timeout = SLOWER_S if told else None
            done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                log.error("%d of %d engines are slow to %s an adapter", len(pending), len(asked), request.operation)
                break
            told += [outcome for task in done if (outcome := task.result()) is not None]
        nobody = failure(request.id, EngineUnavailable(AWAY))
        outcome = next((one for one in told if one.is_error), told[0] if told else nobody)
        if not outcome.is_error:
            late = [link for link in self._links if link not in asked or asked[link] in pending or asked[link].result() is None]
            if late:
                catching_up = [self._background(self._catch_up(link, request, asked.get(link))) for link in late]
                self._catching_up[request.adapter] = catching_up
        answers.put(outcome)

    async def _catch_up(self, link: EngineLink, request: Request, asked: asyncio.Task[Outcome | None] | None) -> None:
        """Tell an engine what the others have done, once: it may have been opened before that was known."""
        outcome = None if asked is None else await asked
        if outcome is None:
            while not await link.wait_up(_WAIT_S):
                pass
            outcome = await _last(link, replace(request, id=next_request_id()))
        if outcome is None or outcome.is_error:
            log.error("an engine could not %s an adapter that others did", request.operation)

    def _background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _last(link: EngineLink, request: Request) -> Outcome | None:
    """What an engine says in the end; None where it is away, or lost before. Whatever happens, somebody waits for an answer."""
    try:
        answers = await link.ask(request)
        try:
            while not (outcome := await answers.get()).is_final:
                pass
        finally:
            link.release(answers)
    except Exception as error:
        log.error("unforeseen %s while an engine was asked", type(error).__name__)
        return failure(request.id, InternalError())
    return None if outcome.error_code == EngineUnavailable.code else outcome


def _film_keys(request: Request) -> list[tuple[str, ...]]:
    """What is kept of films is kept for one tenant."""
    return [("film", request.tenant, film.digest) for film in request.films] if request.stores else []


def _adapter_keys(request: Request) -> list[tuple[str, ...]]:
    return [("adapter", name) for name in sorted(request.adapters)]
