"""EngineLoop: the life of the engine's one thread. Take in what came, decide, run, send; again.

    inbox (filled by the reading thread and by the loader) --> [Doorstep] --> Scheduler --> Engine --> send

It never waits while there is work: a batch is whatever waits when the device is free. Where batches run beside each other on
one core each, `lanes_loop.py` takes its place.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from foundation.errors import DeadlineExceeded
from serving.admission import Device, refusal
from serving.arena import Arena
from serving.cost import rows_of
from serving.doorstep import Doorstep
from serving.messages import Batch, Outcome, Request
from serving.pace import Paces
from serving.scheduler import Scheduler
from serving.transport import failure, outcome_to_plain, request_from_plain
from serving.withdrawals import Withdrawals

Message = Mapping[str, Any]
TOO_LATE = "The request waited longer than its deadline allows. Try again later, or send less at once."


def is_plain(batch: Batch) -> bool:
    """Whether the batch says how fast films go: none of it loads an adapter."""
    return all(request.operation not in ("load", "unload") for request in batch.requests)


class Runs(Protocol):
    """What the loop needs of an engine."""

    @property
    def generating(self) -> int: ...

    def run(self, batch: Batch) -> list[Outcome]: ...

    def generate(self, has_news: Callable[[], bool]) -> list[Outcome]: ...

    def cancel(self, request_id: int) -> bool: ...

    def forget(self, tenant: str, study: str) -> None: ...


class EngineLoop:
    """withdrawn: shared with an engine that looks into it. weigh: what a request costs, where more is known than it says."""

    def __init__(
        self,
        engine: Runs,
        scheduler: Scheduler,
        send: Callable[[Message], None],
        clock: Callable[[], float] = time.monotonic,
        doorstep: Doorstep | None = None,
        withdrawn: Withdrawals | None = None,
        weigh: Callable[[Request], float] = rows_of,
    ) -> None:
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._engine = engine
        self._scheduler = scheduler
        self._send = send
        self._clock = clock
        self.paces = Paces()
        self.arena: Arena | None = None  # where films lie that came without their pixels
        self.withdrawn = withdrawn if withdrawn is not None else Withdrawals()
        self._weigh = weigh
        self._doorstep = doorstep
        if doorstep is not None:
            doorstep.tell(lambda digest: self.inbox.put({"kind": "adapter", "digest": digest}))

    def deliver(self, message: Message) -> None:
        """From another thread. Who has left is marked at once, for a batch that keeps the loop's thread busy."""
        if message["kind"] == "cancel":
            self.withdrawn.add(message["id"])
        self.inbox.put(message)

    def run_forever(self) -> None:
        while True:
            self.step(waits=True)

    def step(self, *, waits: bool = False) -> bool:
        """Take in everything that came and take one step; False if there was nothing to do. waits: for a message."""
        for message in self._arrived(waits and not self._has_work):
            self._take(message)
        self._release()
        if not self._has_work:
            return False
        step = self._scheduler.next(self._clock(), self._engine.generating)
        self._tell(failure(request.id, DeadlineExceeded(TOO_LATE)) for request in step.expired)
        if step.batch is not None:
            start = time.perf_counter()
            outcomes = self._engine.run(step.batch)
            if is_plain(step.batch) and not any(request.id in self.withdrawn for request in step.batch.requests):
                self.paces.note(sum(map(rows_of, step.batch.requests)), time.perf_counter() - start, is_wide=True)
            self._tell(outcomes)
        elif step.generates:
            self._tell(self._engine.generate(self._has_news))
        else:
            return False
        self._beat()
        return True

    @property
    def _has_work(self) -> bool:
        return bool(len(self._scheduler) or self._engine.generating or self._may_release)

    def _arrived(self, waits: bool) -> Iterable[Message]:
        if waits:
            yield self.inbox.get()
        while True:
            try:
                yield self.inbox.get_nowait()
            except queue.Empty:
                return

    def _has_news(self) -> bool:
        """Whether a message came while nothing else waited. While something waits, chats keep the whole of their turns."""
        return not len(self._scheduler) and not self.inbox.empty()

    def _take(self, message: Message) -> None:
        if message["kind"] == "request":
            request = request_from_plain(message["request"], self.arena)
            request = replace(request, rows=self._weigh(request))
            if self._doorstep is None or self._doorstep.admit(request):
                self._admit(request)
        elif message["kind"] == "adapter":
            assert self._doorstep is not None
            self._doorstep.arrived(message["digest"])
        elif message["kind"] == "forget":
            self._engine.forget(message["tenant"], message["study"])
        elif message["kind"] == "cancel":
            self._withdraw(message["id"])

    def _release(self) -> None:
        """Let in who waited for an adapter that has come."""
        for request in self._doorstep.release() if self._doorstep is not None else ():
            self._admit(request)

    @property
    def _may_release(self) -> bool:
        return self._doorstep is not None and self._doorstep.may_release

    def _admit(self, request: Request) -> None:
        """Let it wait, or say at once that it would wait too long."""
        before = self._scheduler.rows_before(request) + self._rows_under_way
        reason = refusal(request, self._clock(), before, self._device)
        if reason is not None:
            self._tell([failure(request.id, reason)])
        else:
            self._scheduler.add([request])

    @property
    def _device(self) -> Device:
        return Device(self.paces.wide, self._scheduler.budget.rows)

    @property
    def _rows_under_way(self) -> float:
        return 0

    def _withdraw(self, request_id: int) -> None:
        """Out of wherever it is; one in a batch under way stays marked until that is over."""
        self.withdrawn.add(request_id)
        loading = self._doorstep.cancel(request_id) if self._doorstep is not None else None
        queued = self._scheduler.cancel(request_id) if loading is None else None
        if loading is not None:
            self.withdrawn.note("loading", rows_of(loading))
        elif queued is not None:
            self.withdrawn.note("queue", rows_of(queued))
        elif self._is_under_way(request_id):
            return
        else:
            self._engine.cancel(request_id)
        self.withdrawn.discard(request_id)

    def _is_under_way(self, request_id: int) -> bool:
        return False

    def _beat(self) -> None:
        self._send({"kind": "beat", **self.withdrawn.tally()})

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._send({"kind": "outcome", "outcome": outcome_to_plain(outcome)})
