"""LanesLoop: the engine's loop where batches run in lanes (`lanes.py`) beside each other, one core each.

    Scheduler --> prepare --> lane: compute --> inbox --> finish --> send          all but `compute` in the loop's thread

A batch that is alone runs on all cores where that has been the faster way (`lone.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from foundation.errors import DeadlineExceeded
from serving.admission import Device
from serving.cost import rows_of
from serving.doorstep import Doorstep
from serving.engine_loop import TOO_LATE, EngineLoop, Message, Runs
from serving.lanes import Lanes
from serving.lone import Lone
from serving.messages import Batch, Outcome, Request
from serving.scheduler import Scheduler
from serving.transport import failure
from serving.withdrawals import Withdrawals


class RunsInLanes(Runs, Protocol):
    """An engine whose batches can be computed in other threads."""

    def prepare(self, batch: Batch) -> Any: ...

    def compute(self, prepared: Any) -> None: ...

    def finish(self, prepared: Any) -> list[Outcome]: ...

    def use_threads(self, count: int) -> None: ...


class LanesLoop(EngineLoop):
    """EngineLoop over lanes. lane_rows: the most that a batch on one core may ever cost; see pace.py."""

    def __init__(
        self,
        engine: RunsInLanes,
        scheduler: Scheduler,
        send: Callable[[Message], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        lanes: int,
        lane_rows: float,
        cores: int,
        doorstep: Doorstep | None = None,
        withdrawn: Withdrawals | None = None,
        weigh: Callable[[Request], float] = rows_of,
    ) -> None:
        super().__init__(engine, scheduler, send, clock, doorstep, withdrawn, weigh)
        self._runs = engine
        self._most_rows, self._cores = lane_rows, cores
        self._lanes: Lanes[Any] = Lanes(lanes, self._compute, lambda one: self.inbox.put({"kind": "computed", "prepared": one}))
        self._computed: list[Any] = []
        self._is_blocked = False  # nothing that waits can go before something else ends
        self._under_way: dict[int, Request] = {}  # by id, from prepare to finish
        self.lone = Lone()
        self._alone: Any = None  # the batch in a lane that has had none beside it so far

    def wait_idle(self) -> None:
        """Until no lane computes: for whoever is about to change the model."""
        self._lanes.wait_idle()

    def warm_up(self, check: Callable[[], None]) -> None:
        """Learn the pace of one film on all cores and on one; `check` computes one."""
        for is_wide in (False, False, True, True):
            self._runs.use_threads(self._cores if is_wide else 1)
            start = time.perf_counter()
            check()
            took_s = time.perf_counter() - start
            self.paces.note(1, took_s, is_wide=is_wide)
            self.lone.note(1, took_s, is_wide=is_wide)

    def step(self, *, waits: bool = False) -> bool:
        """As in EngineLoop. First a batch for a lane that is free, then the answers of one that was computed."""
        for message in self._arrived(waits and not self._can_move):
            self._is_blocked = False
            self._take(message)
        self._release()
        if not self._can_move:
            return False
        while self._lanes.free and len(self._scheduler) and self._dispatch() and not self._engine.generating:
            continue
        while self._computed:
            self._finish(self._computed.pop(0))
        if self._engine.generating:
            self._use_what_is_free()
            self._tell(self._engine.generate(self._has_news))
            self._beat()
        return True

    @property
    def _can_move(self) -> bool:
        may_dispatch = len(self._scheduler) and self._lanes.free and not self._is_blocked
        return bool(self._engine.generating or self._computed or may_dispatch or self._may_release)

    def _dispatch(self) -> bool:
        """Begin the next batch; False where none can be: chats have their turn, or what waits needs what is in use."""
        step = self._scheduler.next(
            self._clock(), self._engine.generating + self._opening, rows=self._share, in_use=self._adapters_in_use
        )
        self._tell(failure(request.id, DeadlineExceeded(TOO_LATE)) for request in step.expired)
        if step.batch is None:
            self._is_blocked = not step.generates
            return False
        self._begin(step.batch)
        return True

    @property
    def _adapters_in_use(self) -> frozenset[str]:
        return frozenset(name for request in self._under_way.values() for name in request.adapters)

    @property
    def _opening(self) -> int:
        """Chats whose film is looked at, and which will be written then."""
        return sum(request.operation == "chat" for request in self._under_way.values())

    @property
    def _lane_rows(self) -> float:
        return self.paces.lane_rows(self._most_rows)

    @property
    def _share(self) -> float:
        """Rows of the next batch: an even share of what waits for each free lane."""
        return min(self._lane_rows, -(-self._scheduler.rows // max(1, self._lanes.free)))

    @property
    def _device(self) -> Device:
        return Device(self.paces.narrow, self._lane_rows, self._lanes.count)

    @property
    def _rows_under_way(self) -> float:
        return sum(map(rows_of, self._under_way.values()))

    def _begin(self, batch: Batch) -> None:
        is_alone = not self._lanes.busy and not self._computed and not len(self._scheduler)
        if is_alone and self.lone.prefers_wide(sum(map(rows_of, batch.requests))):
            self._run_wide(batch)
            return
        if not is_alone:
            self.lone.interrupt()
        self._runs.use_threads(1)
        prepared = self._runs.prepare(batch)
        self._alone = prepared if is_alone else None
        self._under_way |= {request.id: request for request in batch.requests}
        self._lanes.submit(prepared)

    def _run_wide(self, batch: Batch) -> None:
        """Here and now, on all cores."""
        self._runs.use_threads(self._cores)
        prepared = self._runs.prepare(batch)
        start = time.perf_counter()
        self._runs.compute(prepared)
        if prepared.rows:
            took_s = time.perf_counter() - start
            self.paces.note(prepared.rows, took_s, is_wide=True)
            self.lone.note(prepared.rows, took_s, is_wide=True)
        self._tell(self._runs.finish(prepared))
        self._beat()

    def _compute(self, prepared: Any) -> None:
        """In a lane; the loop hears of its end by a message."""
        start = time.perf_counter()
        self._runs.compute(prepared)
        prepared.seconds = time.perf_counter() - start

    def _take(self, message: Message) -> None:
        if message["kind"] == "computed":
            self._computed.append(message["prepared"])
        else:
            super()._take(message)

    def _finish(self, prepared: Any) -> None:
        if prepared.rows:
            self.paces.note(prepared.rows, prepared.seconds, is_wide=False)
            if prepared is self._alone:
                self.lone.note(prepared.rows, prepared.seconds, is_wide=False)
        self._alone = None if prepared is self._alone else self._alone
        self._use_what_is_free()
        outcomes = self._runs.finish(prepared)
        self._is_blocked = False
        for request in prepared.batch.requests:
            del self._under_way[request.id]
            if request.id in self.withdrawn:
                self.withdrawn.discard(request.id)
                self._engine.cancel(request.id)
        self._tell(outcomes)
        self._beat()

    def _use_what_is_free(self) -> None:
        self._runs.use_threads(1 if self._lanes.busy else self._cores)

    def _is_under_way(self, request_id: int) -> bool:
        return request_id in self._under_way
