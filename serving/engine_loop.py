"""EngineLoop: the life of the engine's one thread. Take in what came, decide, run, send; again.

    inbox (filled by the reading threads) --> [Doorstep] --> Scheduler --> Engine --> send

It never waits while there is work: a batch is whatever waits when the device is free.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from foundation.errors import DeadlineExceeded
from serving.doorstep import Doorstep
from serving.messages import Batch, Outcome
from serving.scheduler import Scheduler
from serving.transport import failure, outcome_to_plain, request_from_plain

Message = Mapping[str, Any]
TOO_LATE = "The request waited longer than its deadline allows. Try again later, or send less at once."


class Runs(Protocol):
    """What the loop needs of an engine."""

    @property
    def generating(self) -> int: ...

    def run(self, batch: Batch) -> list[Outcome]: ...

    def generate(self) -> list[Outcome]: ...

    def cancel(self, request_id: int) -> bool: ...

    def forget(self, tenant: str, study: str) -> None: ...


class EngineLoop:
    def __init__(
        self,
        engine: Runs,
        scheduler: Scheduler,
        send: Callable[[Message], None],
        clock: Callable[[], float] = time.monotonic,
        doorstep: Doorstep | None = None,
    ) -> None:
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._engine = engine
        self._scheduler = scheduler
        self._send = send
        self._clock = clock
        self._doorstep = doorstep
        if doorstep is not None:
            doorstep.tell(lambda digest: self.inbox.put({"kind": "adapter", "digest": digest}))

    def run_forever(self) -> None:
        while True:
            self.step(waits=True)

    def step(self, *, waits: bool = False) -> bool:
        """Take in everything that came and take one step; False if there was nothing to do. waits: for a message."""
        is_idle = not len(self._scheduler) and not self._engine.generating
        if self._doorstep is not None and self._doorstep.may_release:
            is_idle = False
        for message in self._arrived(waits and is_idle):
            self._take(message)
        if self._doorstep is not None:
            self._scheduler.add(self._doorstep.release())
        step = self._scheduler.next(self._clock(), self._engine.generating)
        self._tell(failure(request.id, DeadlineExceeded(TOO_LATE)) for request in step.expired)
        if step.batch is not None:
            self._tell(self._engine.run(step.batch))
        elif step.generates:
            self._tell(self._engine.generate())
        else:
            return False
        self._send({"kind": "beat"})
        return True

    def _arrived(self, waits: bool) -> Iterable[Message]:
        if waits:
            yield self.inbox.get()
        while True:
            try:
                yield self.inbox.get_nowait()
            except queue.Empty:
                return

    def _take(self, message: Message) -> None:
        if message["kind"] == "request":
            request = request_from_plain(message["request"])
            if self._doorstep is None or self._doorstep.admit(request):
                self._scheduler.add([request])
        elif message["kind"] == "adapter":
            assert self._doorstep is not None
            self._doorstep.arrived(message["digest"])
        elif message["kind"] == "forget":
            self._engine.forget(message["tenant"], message["study"])
        elif message["kind"] == "cancel":
            is_held = self._doorstep is not None and self._doorstep.cancel(message["id"])
            if not is_held and not self._scheduler.cancel(message["id"]):
                self._engine.cancel(message["id"])

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._send({"kind": "outcome", "outcome": outcome_to_plain(outcome)})
