"""Refused at once only where it would be late, with a time to come back that is true; and through the loop."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from foundation.errors import DeadlineExceeded, Overloaded
from serving.admission import SLACK, Device, refusal
from serving.engine_loop import EngineLoop
from serving.messages import Batch, Outcome, Request
from serving.pace import Pace, Paces
from serving.scheduler import Budget, Scheduler
from serving.transport import request_to_plain

PACE = Pace().after(4, 0.5).after(8, 0.9)  # 0.1 s a row and 0.1 s a batch
DEVICE = Device(PACE, batch_rows=4, beside=2)


def ask(deadline: float | None, **rest: Any) -> Request:
    return Request(1, "embed_image", deadline=deadline, **rest)


@given(st.floats(0.0, 30.0), st.integers(0, 500))
@example(0.16, 0)
def test_who_is_refused_would_be_late_and_who_comes_back_in_time_is_not(left_s: float, before: int) -> None:
    own_s, before_s = PACE.seconds_for(1), before / 4 * 0.5 / 2
    deadline = 100.0 + left_s
    left_s = deadline - 100.0  # as the server reckons it: the clock's own rounding is no part of this
    why = refusal(ask(deadline), 100.0, before, DEVICE)
    if own_s > SLACK * left_s:
        assert isinstance(why, DeadlineExceeded)
    elif isinstance(why, Overloaded):
        assert own_s + before_s > SLACK * left_s
        gone = int(why.retry_after_s / (0.5 / 2 / 4)) + 1
        assert refusal(ask(deadline), 100.0, max(0, before - gone), DEVICE) is None
    else:
        assert why is None
        assert own_s + before_s <= SLACK * left_s * 1.001


def test_nobody_is_refused_without_a_deadline_or_before_anything_ran() -> None:
    assert refusal(ask(None), 0.0, 10_000, DEVICE) is None
    assert refusal(ask(0.001), 0.0, 10_000, Device(Pace(), 4)) is None
    assert refusal(Request(1, "load", deadline=0.001), 0.0, 10_000, DEVICE) is None


class Slow:
    """One second a film, on a clock that only it moves."""

    generating = 0

    def __init__(self) -> None:
        self.ran: list[int] = []

    def run(self, batch: Batch) -> list[Outcome]:
        self.ran += [request.id for request in batch.requests]
        return [Outcome(request.id, {}) for request in batch.requests]

    def generate(self) -> list[Outcome]:
        raise AssertionError

    def cancel(self, request_id: int) -> bool:
        return False

    def forget(self, tenant: str, study: str) -> None: ...


def test_the_loop_tells_who_would_wait_too_long_when_to_come_back() -> None:
    engine, sent = Slow(), list[Any]()
    loop = EngineLoop(engine, Scheduler(Budget(rows=1)), sent.append, clock=lambda: 10.0)
    loop.paces.note(1, 1.0, is_wide=True)
    for number in range(1, 5):
        request = Request(number, "embed_image", arrival=10.0, deadline=12.5 if number < 4 else 10.1)
        loop.inbox.put({"kind": "request", "request": request_to_plain(request)})
    while loop.step():
        pass
    outcomes = {one["outcome"]["request_id"]: one["outcome"] for one in sent if one["kind"] == "outcome"}
    assert engine.ran == [1, 2, 3]
    assert outcomes[4]["error_code"] == "deadline_exceeded"
    sent.clear()
    loop.paces = Paces(wide=Pace().after(1, 1.0))
    for number in range(5, 9):
        request = Request(number, "embed_image", arrival=10.0, deadline=12.0)
        loop.inbox.put({"kind": "request", "request": request_to_plain(request)})
    loop.step()
    late = [one["outcome"] for one in sent if one["kind"] == "outcome" and one["outcome"]["error_code"] == "overloaded"]
    assert [(one["request_id"], one["retry_after_s"]) for one in late] == [(7, 1.0), (8, 1.0)]
