"""Hub: where the requests of several front processes meet, in the parent that has the engines.

    front 1 --request, cancel, forget--> Hub --EngineLink or Fleet--> engine(s)
    front 2 --------------------------->  |
       ^-------- outcome, state ----------+

A front's requests are given numbers of the parent's own, so that those of two fronts cannot be taken for one another. They all
wait in the engine's one queue, whose shares are by tenant and adapter (fairness.py), so no front has more of it by being
busier. What must be one for all fronts is here: which adapters are unloaded, the patience with an engine that is being
started, the turn of requests that are asked again. Films are copied from the front's arena into the engine's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from serving.arena import Arena
from serving.asking import Asking
from serving.engine_link import EngineLink
from serving.fleet import EVERYWHERE, Fleet
from serving.gateway import next_request_id
from serving.http_errors import InternalError, error_from
from serving.messages import Outcome, Request
from serving.transport import AsyncChannel, PeerLostError, failure, outcome_to_plain, request_from_plain

log = logging.getLogger("serving.hub")
STATE_EACH_S = 0.2
NOTHING: Mapping[str, Mapping[str, int]] = {}
_SEEN_LIMIT_S = 2.0


@dataclass(eq=False)
class Peer:
    """A front as the hub knows it. has_started: set by its "ready"; by its "failed", with why."""

    channel: AsyncChannel
    arena: Arena
    has_started: asyncio.Future[None]
    last_heard: float = field(default_factory=time.monotonic)
    relays: dict[int, asyncio.Task[None]] = field(default_factory=dict)  # by the front's own number
    unseen: dict[int, asyncio.Future[None]] = field(default_factory=dict)  # by serial of the state it was told
    told: Mapping[str, Any] = field(default_factory=dict)
    known_facts: object = None


class Hub:
    """link: to the engines, started."""

    def __init__(self, link: EngineLink | Fleet, patience_s: float) -> None:
        self.link = link
        self._asking = Asking(link, patience_s, self._tell_adapters)
        self._peers: set[Peer] = set()
        self._serials = itertools.count(1)
        self._changing = asyncio.Lock()
        self._counted: dict[str, Counter[str]] = {}  # rows that some front was told of

    async def serve(self, peer: Peer) -> None:
        """Relay for a front until it is gone; what it asked for is withdrawn then."""
        self._peers.add(peer)
        self._tell(peer, with_adapters=True)
        try:
            while True:
                self._take(peer, await peer.channel.receive())
        except PeerLostError:
            pass
        finally:
            self._peers.discard(peer)
            for waiting in (*peer.relays.values(), *peer.unseen.values()):
                waiting.cancel()
            await asyncio.gather(*peer.relays.values(), return_exceptions=True)

    async def keep_telling(self) -> None:
        """How the engines are, to all fronts, for ever."""
        while True:
            await asyncio.sleep(STATE_EACH_S)
            for number, peer in enumerate(self._peers):
                self._tell(peer, rows=self._new_rows() if not number else {})

    def _take(self, peer: Peer, message: Mapping[str, Any]) -> None:
        """Raises PeerLostError for what no front of ours says."""
        peer.last_heard = time.monotonic()
        if message["kind"] == "request":
            request = request_from_plain(message["request"], peer.arena)
            task = peer.relays[request.id] = asyncio.create_task(self._relay(peer, request))
            task.add_done_callback(lambda _: peer.relays.pop(request.id, None))
        elif message["kind"] == "cancel":
            if (relay := peer.relays.get(message["id"])) is not None:
                relay.cancel()
        elif message["kind"] == "forget":
            self.link.forget(message["tenant"], message["study"])
        elif message["kind"] == "seen":
            if (seen := peer.unseen.pop(message["serial"], None)) is not None:
                seen.set_result(None)
        elif message["kind"] == "ready":
            peer.has_started.set_result(None)
        elif message["kind"] == "failed":
            peer.has_started.set_exception(error_from(message["code"], message["message"]))

    async def _relay(self, peer: Peer, request: Request) -> None:
        own = replace(request, id=next_request_id())

        def answer(outcome: Outcome) -> None:
            peer.channel.post({"kind": "outcome", "outcome": outcome_to_plain(replace(outcome, request_id=request.id))})

        try:
            if own.operation in EVERYWHERE:
                async with self._changing:
                    answer(await self._asking.administer(own))
                return
            async with aclosing(self._asking.stream(own)) as outcomes:
                async for outcome in outcomes:
                    answer(outcome)
        except Exception as error:  # whatever it was, the caller behind the front waits
            log.error("unforeseen %s while a request was relayed", type(error).__name__)
            answer(failure(own.id, InternalError()))

    async def _tell_adapters(self) -> None:
        """That adapters have changed; until every front knows, or a moment has passed."""
        unseen = [self._tell(peer, with_adapters=True) for peer in self._peers]
        if unseen:
            await asyncio.wait(filter(None, unseen), timeout=_SEEN_LIMIT_S)

    def _new_rows(self) -> dict[str, dict[str, int]]:
        """What the engines have counted since this was last asked: for one front, since fronts' counts are summed."""
        now = {name: Counter(counted) for name, counted in self.link.rows.items()}
        new = {name: dict(counted - self._counted.get(name, Counter())) for name, counted in now.items()}
        self._counted = now
        return new if any(new.values()) else {}

    def _tell(
        self, peer: Peer, *, with_adapters: bool = False, rows: Mapping[str, Mapping[str, int]] = NOTHING
    ) -> asyncio.Future[None] | None:
        """The state, where it is another than it was told; with_adapters: in any case, and when it has been seen."""
        state = {
            "is_up": self.link.is_up,
            "restarts": self.link.restarts,
            "last_forward": self.link.last_forward,
            "elsewhere": max(0, len(self.link) - len(peer.relays)),
        }
        if state == peer.told and not with_adapters and not rows:
            return None
        peer.told = state
        message: dict[str, Any] = {"kind": "state", **state, "rows": rows}
        if self.link.facts is not peer.known_facts:
            message["facts"] = peer.known_facts = self.link.facts
        if not with_adapters:
            peer.channel.post(message)
            return None
        serial = next(self._serials)
        peer.channel.post({**message, "unloaded": list(self.link.config.unloaded), "serial": serial})
        seen = peer.unseen[serial] = asyncio.get_running_loop().create_future()
        return seen
