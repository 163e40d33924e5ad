"""Worker: the Gateway of a real server. Joins the decode pool and the engine process; holds no torch itself.

    decode --> DecodePool            (films under the engine's input contract)
    ask, stream --> EngineLink       (one engine process, replaced when lost), or a Fleet of them, one a device,
                    or a HubLink to a parent that has them  (where there are several fronts)
    models --> what the engine opened, and the adapters in the store that were made for it

A canary asks the engine for a blank film whenever it has been idle for a while, so that readiness speaks of now.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import numpy as np

from adapters.store import LIBRARY, AdapterStore, StoredAdapter
from foundation.errors import AdapterNotFound, EngineUnavailable, InvalidRequest, VesaliusError
from foundation.preprocess import InputContract
from serving.adapter_info import adapter_info
from serving.asking import Asking
from serving.config import ServerConfig
from serving.decode_pool import DecodePool
from serving.engine_link import EngineLink
from serving.fleet import Fleet
from serving.gateway import ModelInfo, Readiness, next_request_id
from serving.hub_link import HubLink
from serving.link import AWAY
from serving.mask_files import MaskFile
from serving.messages import Film, Operation, Outcome, RawFilm, Request
from serving.prompts import TEMPLATES
from serving.together import together
from serving.transport import contract_from_plain, failure

log = logging.getLogger("serving.worker")
_LISTING_LIVES_S = 1.0
_CANARY_LIMIT_S = 60.0
_CANARY_GRACE_S = 5.0


def engines(config: ServerConfig) -> EngineLink | Fleet:
    """The link to the engine of this config, not started; to all of them where several devices are named."""
    start_s, hang_s = config.start_limit_s, config.hang_limit_s
    if len(config.devices) > 1:
        return Fleet.of(config.engine, config.devices, start_limit_s=start_s, hang_limit_s=hang_s)
    return EngineLink(config.engine, start_limit_s=start_s, hang_limit_s=hang_s)


class Worker:
    """Start and close it on the event loop that the API runs on."""

    def __init__(self, config: ServerConfig, link: EngineLink | Fleet | HubLink | None = None) -> None:
        self.config = config
        self.pool = DecodePool(config.decode)
        self.link = engines(config) if link is None else link  # NOTE: a link that waits for nothing is empty, so false
        self._asking = Asking(self.link, config.restart_patience_s)
        user_roots = [root for root in AdapterStore.default(config.engine.adapters_dir).roots if root != LIBRARY]
        self._stores = (AdapterStore(LIBRARY), *(AdapterStore(root) for root in user_roots))
        self._listed: list[ModelInfo] = []
        self._listed_at = -_LISTING_LIVES_S
        self._listed_under: object = None  # the link's config then: another one once an adapter was loaded or unloaded
        self._canary: asyncio.Task[None] | None = None
        self._failed_engine: int | None = None  # which of the engines started so far failed its last canary

    async def start(self) -> None:
        """Both kinds of process, side by side. Raises why the engine or a decoder cannot start."""
        try:
            await together((self.pool.start(), self.link.start()))
        except BaseException:
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
        """An unloaded adapter is listed no more."""
        name = request.adapter or ""
        if request.operation == "unload" and all(info.name != name or info.kind == "base" for info in self.models()):
            return failure(request.id, AdapterNotFound(f"There is no adapter called {name!r} to unload.", param="name"))
        return await self._asking.administer(request)

    async def ask(self, request: Request) -> Outcome:
        return await self._asking.ask(request)

    def stream(self, request: Request) -> AsyncGenerator[Outcome, None]:
        return self._asking.stream(request)

    def forget(self, tenant: str, study: str = "") -> None:
        self.link.forget(tenant, study)

    def models(self) -> list[ModelInfo]:
        """The base first. Looks at the store again when the last look is a moment old: a new adapter is live at once."""
        is_old = time.monotonic() - self._listed_at >= _LISTING_LIVES_S or self._listed_under is not self.link.config
        if is_old and self.link.facts is not None:
            config = self.link.config
            self._listed = [self._base(), *(adapter_info(stored, self._facts["name"]) for stored in self._adapters())]
            self._listed_at, self._listed_under = time.monotonic(), config
        return list(self._listed)

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
        gone = {info.name for info in self._listed if info.kind == "adapter"} - {stored.name for stored in found}
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
