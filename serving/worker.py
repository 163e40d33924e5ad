"""Worker: the Gateway of a real server. Joins the decode pool and the engine process; holds no torch itself.

    decode --> DecodePool            (films under the engine's input contract)
    ask, stream --> EngineLink       (one engine process, replaced when lost), or a Fleet of them, one a device
    models --> what the engine opened, and the adapters in the store that were made for it

A canary asks the engine for a blank film whenever it has been idle for a while, so that readiness speaks of now.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np

from adapters.store import LIBRARY, AdapterStore, StoredAdapter
from foundation.errors import AdapterNotFound, EngineUnavailable, InvalidRequest, VesaliusError
from foundation.preprocess import InputContract
from serving.adapter_info import adapter_info
from serving.config import ServerConfig
from serving.decode_pool import DecodePool
from serving.engine_link import AWAY, EngineLink
from serving.fleet import Fleet
from serving.gateway import ModelInfo, Readiness, next_request_id
from serving.mask_files import MaskFile
from serving.messages import Film, Operation, Outcome, RawFilm, Request
from serving.prompts import TEMPLATES
from serving.transport import contract_from_plain, failure

log = logging.getLogger("serving.worker")
_LISTING_LIVES_S = 1.0
_CANARY_LIMIT_S = 60.0
_CANARY_GRACE_S = 5.0


class _LostUnheardError(Exception):
    """The engine was lost before it said anything about a request, so asking again repeats nothing."""


class Worker:
    """Start and close it on the event loop that the API runs on."""

    def __init__(self, config: ServerConfig, link: EngineLink | Fleet | None = None) -> None:
        self.config = config
        self.pool = DecodePool(config.decode)
        if link is None:  # a link that waits for nothing is empty, and so counts as false
            start_s, hang_s = config.start_limit_s, config.hang_limit_s
            if len(config.devices) > 1:
                link = Fleet.of(config.engine, config.devices, start_limit_s=start_s, hang_limit_s=hang_s)
            else:
                link = EngineLink(config.engine, start_limit_s=start_s, hang_limit_s=hang_s)
        self.link = link
        user_roots = [root for root in AdapterStore.default(config.engine.adapters_dir).roots if root != LIBRARY]
        self._stores = (AdapterStore(LIBRARY), *(AdapterStore(root) for root in user_roots))
        self._listed: tuple[float, list[ModelInfo]] = (-_LISTING_LIVES_S, [])
        self._canary: asyncio.Task[None] | None = None
        self._asking_again = asyncio.Lock()
        self._failed_engine: int | None = None  # which of the engines started so far failed its last canary

    async def start(self) -> None:
        """Both kinds of process, side by side. Raises why the engine or a decoder cannot start."""
        starting = (asyncio.create_task(self.pool.start()), asyncio.create_task(self.link.start()))
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self.close()
            raise
        self._canary = asyncio.create_task(self._sing())

    async def close(self) -> None:
        if self._canary is not None:
            self._canary.cancel()
        await asyncio.gather(self.pool.close(), self.link.close())

    async def decode(self, raw: RawFilm) -> Film:
        return await self.pool.decode(raw, self.contract)

    async def mask_file(self, wanted: MaskFile) -> bytes:
        return await self.pool.mask_file(wanted)

    async def administer(self, request: Request) -> Outcome:
        """An unloaded adapter is remembered here, so that an engine started anew knows of it, and is listed no more."""
        name = request.adapter or ""
        unloaded = set(self.link.config.unloaded)
        if request.operation == "unload":
            if all(info.name != name or info.kind == "base" for info in self.models()):
                return failure(request.id, AdapterNotFound(f"There is no adapter called {name!r} to unload.", param="name"))
            self._set_unloaded(unloaded | {name})  # first: whoever asks from here on is told so
        outcome = await self.ask(request)
        if outcome.is_error:
            self._set_unloaded(unloaded)
        elif request.operation == "load":
            self._set_unloaded(unloaded - {name})
        return outcome

    def _set_unloaded(self, names: set[str]) -> None:
        self.link.config = replace(self.link.config, unloaded=tuple(sorted(names)))
        self._listed = (-_LISTING_LIVES_S, self._listed[1])

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
        await self.link.wait_up(self._patience_s(request))
        try:
            async with aclosing(self._stream_once(request)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
            return
        except _LostUnheardError:
            pass
        async with self._asking_again:
            await self.link.wait_up(self._patience_s(request))
            async with aclosing(self._stream_once(replace(request, id=next_request_id()), is_last=True)) as outcomes:
                async for outcome in outcomes:
                    yield outcome

    async def _stream_once(self, request: Request, *, is_last: bool = False) -> AsyncGenerator[Outcome, None]:
        """The pieces. Raises _LostUnheardError where the engine was lost before the first one, unless this is_last."""
        answers = await self.link.ask(request)
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
            self.link.release(answers)

    def _patience_s(self, request: Request) -> float:
        """How long this request may wait for an engine that is being started."""
        left_s = self.config.restart_patience_s if request.deadline is None else request.deadline - time.monotonic()
        return max(0.0, min(left_s, self.config.restart_patience_s))

    def forget(self, tenant: str, study: str = "") -> None:
        self.link.forget(tenant, study)

    def models(self) -> list[ModelInfo]:
        """The base first. Looks at the store again when the last look is a moment old: a new adapter is live at once."""
        listed_at, listed = self._listed
        if time.monotonic() - listed_at >= _LISTING_LIVES_S and self.link.facts is not None:
            listed = [self._base(), *(adapter_info(stored, self._facts["name"]) for stored in self._adapters())]
            self._listed = (time.monotonic(), listed)
        return list(listed)

    def readiness(self) -> Readiness:
        last = self.link.last_forward
        age_s = None if last is None else time.monotonic() - last
        reason = ""
        if not self.link.is_up:
            reason = AWAY
        elif self._failed_engine == self.link.restarts:
            reason = "The engine did not answer its last check."
        elif age_s is None or age_s > self._stale_s:
            reason = f"The engine has finished nothing for over {self._stale_s:.0f} seconds."
        rows = self.link.rows
        withdrawn = {**rows["withdrawn"], "decode": self.pool.withdrawn}
        return Readiness(not reason, age_s, len(self.link), reason, withdrawn, rows["forwarded"])

    @property
    def contract(self) -> InputContract:
        """What the model eats. Raises EngineUnavailable before the engine has said so."""
        return contract_from_plain(self._facts["contract"])

    @property
    def _facts(self) -> Mapping[str, Any]:
        if self.link.facts is None:
            raise EngineUnavailable(AWAY)
        return self.link.facts

    def _base(self) -> ModelInfo:
        facts = self._facts
        can: tuple[Operation, ...] = ("embed_image", "embed_text", "zero_shot") if facts.get("can_embed", True) else ()
        return ModelInfo(
            name=facts["name"],
            kind="base",
            capabilities=(*can, "chat") if facts["can_chat"] else can,
            templates=TEMPLATES,
            digest=facts["fingerprint"],
            licence=facts["licence"],
            embed_dim=facts["embed_dim"] or None,
            contract=self.contract,
            created=facts["created"],
        )

    def _adapters(self) -> list[StoredAdapter]:
        """As `_look`; looked for again where one is gone, since the store holds none for a moment while it replaces one."""
        found = self._look()
        gone = {info.name for info in self._listed[1] if info.kind == "adapter"} - {stored.name for stored in found}
        return self._look() if gone else found

    def _look(self) -> list[StoredAdapter]:
        """Those made for the base that is open, each name once; the user's own stands for a bundled one of its name."""
        found: dict[str, StoredAdapter] = {}
        for store in self._stores:
            try:
                listed = store.list()
            except VesaliusError as error:
                log.warning("an adapter folder cannot be listed: %s", error.code)
                continue
            for stored in listed:
                if stored.card.base.fits(self._facts["fingerprint"], self._facts.get("decoder", "")):
                    found[stored.name] = stored
        return [stored for name, stored in found.items() if name not in self.link.config.unloaded]

    async def _sing(self) -> None:
        """The canary: a blank film, whenever nobody has asked for anything for a while."""
        interval_s = self.config.canary_interval_s
        while True:
            await asyncio.sleep(interval_s)
            last = self.link.last_forward
            if not self.link.is_up or (last is not None and time.monotonic() - last < interval_s):
                continue
            engine = self.link.restarts
            try:
                async with asyncio.timeout(_CANARY_LIMIT_S):
                    is_well = (await self.ask(self._blank())).error_code in (None, InvalidRequest.code)  # a refusal is life
            except TimeoutError:
                is_well = False
            self._failed_engine = None if is_well else engine

    @property
    def _stale_s(self) -> float:
        """An engine that lives has answered something by then: a canary is due after each interval."""
        return 2 * self.config.canary_interval_s + _CANARY_GRACE_S

    def _blank(self) -> Request:
        size = self.contract.size
        film = Film(np.zeros((size, size, 3), np.uint8), digest="0" * 64)
        return Request(id=next_request_id(), operation="embed_image", film=film, arrival=time.monotonic(), stores=False)
