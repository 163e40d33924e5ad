"""Link: requests out over a channel, and Outcomes back to who asked. Knows nothing of who is at the other end.

EngineLink   to an engine process of our own          (engine_link.py)
HubLink      from one of several fronts to the parent (hub_link.py)
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod

from foundation.errors import EngineUnavailable, InvalidRequest
from serving.arena import Arena
from serving.messages import Outcome, Request
from serving.transport import AsyncChannel, PeerLostError, failure, places_of, request_to_plain

LOST = "The engine stopped while it worked on this request, and is being started again. Try again in a moment."
AWAY = "The engine is not running yet. Try again in a moment."
BAD_NUMBER = "A number is too large to be passed on: give integers of at most 64 bits."
BAD_TEXT = "A text holds characters that are not valid Unicode. Remove them."


class Answers:
    """The Outcomes of one request, in order, as they come."""

    def __init__(self, request_id: int) -> None:
        self.request_id = request_id
        self.is_over = False
        self.is_lost = False  # ended because the engine did
        self._arrived: asyncio.Queue[Outcome] = asyncio.Queue()

    def put(self, outcome: Outcome) -> None:
        self.is_over = outcome.is_final
        self._arrived.put_nowait(outcome)

    async def get(self) -> Outcome:
        return await self._arrived.get()


class Link(ABC):
    """arena: memory shared with who is at the other end."""

    def __init__(self, arena: Arena) -> None:
        self._waiting: dict[int, Answers] = {}
        self._arena = arena
        self._places: dict[int, list[int]] = {}  # of films the peer may not have read yet, in the order they were sent
        self._last_heard = 0.0

    @property
    @abstractmethod
    def channel(self) -> AsyncChannel | None:
        """None while nobody is there."""

    def __len__(self) -> int:
        """How many requests wait for the end of their answer."""
        return len(self._waiting)

    def forget(self, tenant: str, study: str) -> None:
        """Have the engine drop what it keeps; an engine that is not there keeps nothing."""
        if self.channel is not None:
            self.channel.post({"kind": "forget", "tenant": tenant, "study": study})

    async def ask(self, request: Request) -> Answers:
        """Send a request; its Outcomes, an error included, come through the Answers. Close them with `release`."""
        answers = Answers(request.id)
        channel = self.channel
        if channel is None:
            answers.put(failure(request.id, EngineUnavailable(AWAY)))
            return answers
        if not self._waiting:
            self._last_heard = time.monotonic()
        plain = request_to_plain(request, self._arena)
        self._places[request.id] = places_of(plain)
        self._waiting[request.id] = answers
        try:
            await channel.send({"kind": "request", "request": plain})
        except UnicodeEncodeError:
            self._deliver(failure(request.id, InvalidRequest(BAD_TEXT)))
        except OverflowError:
            self._deliver(failure(request.id, InvalidRequest(BAD_NUMBER)))
        except PeerLostError:
            answers.is_lost = True
            self._deliver(failure(request.id, EngineUnavailable(LOST)))
        except BaseException:
            self.release(answers)
            raise
        return answers

    def release(self, answers: Answers) -> None:
        """The caller has all of it, or has left: in that case the request is withdrawn."""
        is_pending = self._waiting.pop(answers.request_id, None) is not None
        if is_pending and not answers.is_over and self.channel is not None:
            self.channel.post({"kind": "cancel", "id": answers.request_id})

    def _free_up_to(self, request_id: int) -> None:
        """The engine has answered this request, so it has read its films and those of all that were sent before it."""
        while request_id in self._places:
            for place in self._places.pop(next(iter(self._places))):
                self._arena.free(place)

    def _free_all(self) -> None:
        for request_id in list(self._places):
            self._free_up_to(request_id)

    def _deliver(self, outcome: Outcome) -> None:
        answers = self._waiting.get(outcome.request_id)
        if answers is None:
            return
        answers.put(outcome)
        if outcome.is_final:
            del self._waiting[outcome.request_id]

    def _fail_all(self) -> None:
        for request_id, answers in list(self._waiting.items()):
            answers.is_lost = True
            self._deliver(failure(request_id, EngineUnavailable(LOST)))
