"""The scheduler's promises, as properties over made-up traffic and a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import InvalidRequest
from serving.cost import rows_of
from serving.fairness import flow_of
from serving.messages import Operation, Request
from serving.scheduler import Budget, Scheduler, Step, choose, urgency

OPERATIONS: tuple[Operation, ...] = ("embed_image", "embed_text", "zero_shot", "classify", "chat")


@st.composite
def requests(draw: st.DrawFn, most: int = 30) -> tuple[Request, ...]:
    made = []
    for number in range(draw(st.integers(0, most))):
        operation = draw(st.sampled_from(OPERATIONS))
        arrival = draw(st.floats(0, 10))
        patience = draw(st.none() | st.floats(0, 20))
        made.append(
            Request(
                id=number,
                operation=operation,
                adapter=draw(st.sampled_from("abcd")) if operation == "classify" else None,
                texts=("text",) * draw(st.integers(1, 200)) if operation == "embed_text" else (),
                arrival=arrival,
                deadline=None if patience is None else arrival + patience,
                rows=draw(st.just(0.0) | st.floats(0.5, 20.0)),
            )
        )
    return tuple(made)


budgets = st.builds(Budget, rows=st.integers(1, 12), adapters=st.integers(1, 3), chats=st.integers(1, 3))


def ids(some: Iterable[Request]) -> set[int]:
    return {request.id for request in some}


@given(requests(), budgets, st.floats(0, 30), st.integers(0, 3))
def test_a_batch_stays_within_the_budget(waiting: tuple[Request, ...], budget: Budget, now: float, free: int) -> None:
    chosen = choose(waiting, now, budget, free).chosen
    assert sum(map(rows_of, chosen)) <= budget.rows + 1e-9 or len(chosen) == 1
    assert len({request.adapter for request in chosen} - {None}) <= budget.adapters
    assert sum(request.operation == "chat" for request in chosen) <= free


@given(requests(), budgets, st.floats(0, 30), st.integers(0, 3))
def test_the_books_balance(waiting: tuple[Request, ...], budget: Budget, now: float, free: int) -> None:
    choice = choose(waiting, now, budget, free)
    parts = (choice.chosen, choice.expired, choice.waiting)
    assert sorted(request.id for part in parts for request in part) == sorted(ids(waiting))
    assert ids(choice.expired) == {one.id for one in waiting if one.deadline is not None and one.deadline <= now}


@given(requests(), budgets, st.floats(0, 30))
def test_the_most_urgent_of_some_flow_always_goes(waiting: tuple[Request, ...], budget: Budget, now: float) -> None:
    choice = choose(waiting, now, budget, free_chats=3, patience_s=2.0)
    alive = [request for request in waiting if request.id not in ids(choice.expired)]
    heads = {flow_of(one): one for one in sorted(alive, key=lambda one: urgency(one, 2.0), reverse=True)}
    if alive:
        assert ids(heads.values()) & ids(choice.chosen)


@given(requests(most=20), budgets)
def test_within_a_flow_the_more_urgent_goes_first(waiting: tuple[Request, ...], budget: Budget) -> None:
    """One row each, so that everything fits and only the order is left to see."""
    single = [Request(id=one.id, operation="embed_image", arrival=one.arrival, deadline=one.deadline) for one in waiting]
    scheduler, gone = Scheduler(Budget(rows=1)), list[Request]()
    scheduler.add(single)
    while (step := scheduler.next(-1.0)).batch is not None:
        gone += step.batch.requests
    assert [one.id for one in gone] == [one.id for one in sorted(single, key=lambda one: urgency(one, 2.0))]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 40)), max_size=60), budgets, st.data())
@settings(max_examples=60)
def test_nothing_starves_and_nothing_is_lost(arrivals: list[tuple[int, int, int]], budget: Budget, data: st.DataObject) -> None:
    """Any traffic, some of it withdrawn: each request leaves exactly once, within as many steps as there are requests."""
    scheduler, now, gone = Scheduler(budget, patience_s=1.0), 0.0, list[int]()
    for number, (tenant, adapter, quarters) in enumerate(arrivals):
        name = "abc"[adapter]
        asked = Request(id=number, operation="classify", adapter=name, tenant=str(tenant), arrival=now, rows=quarters / 4)
        scheduler.add([asked])
        if data.draw(st.booleans()):
            now += 0.3
            batch = scheduler.next(now).batch
            gone += [request.id for request in batch.requests] if batch else []
        if data.draw(st.integers(0, 9)) == 0 and scheduler.cancel(number):
            gone.append(number)
    for _ in arrivals:
        batch = scheduler.next(now := now + 0.3).batch
        gone += [request.id for request in batch.requests] if batch else []
    assert sorted(gone) == list(range(len(arrivals)))
    assert len(scheduler) == 0


def served(scheduler: Scheduler, steps: int, now: float = 0.0) -> list[Request]:
    gone: list[Request] = []
    for _ in range(steps):
        batch = scheduler.next(now).batch
        gone += batch.requests if batch else ()
    return gone


def test_one_who_floods_does_not_keep_another_waiting() -> None:
    scheduler = Scheduler(Budget(rows=2))
    scheduler.add(Request(id=n, operation="embed_image", tenant="flood", arrival=0.0) for n in range(100))
    served(scheduler, 20)
    scheduler.add(Request(id=1000 + n, operation="embed_image", tenant="late", arrival=1.0) for n in range(5))
    tenants = [request.tenant for request in served(scheduler, 5, now=1.0)]
    assert tenants.count("late") == tenants.count("flood") == 5


def test_a_tenants_adapters_share_its_share() -> None:
    scheduler = Scheduler(Budget(rows=2, adapters=4))
    for number in range(40):
        for adapter in "abc":
            number_of = 100 * (1 + "abc".index(adapter)) + number
            scheduler.add([Request(id=number_of, operation="classify", adapter=adapter, tenant="many", arrival=0.0)])
        scheduler.add([Request(id=number, operation="classify", adapter="a", tenant="one", arrival=0.0)])
    gone = served(scheduler, 60)
    ones = sum(request.tenant == "one" for request in gone)
    assert abs(ones - 30) <= 2
    assert {a: sum(r.adapter == a and r.tenant == "many" for r in gone) for a in "abc"} == pytest.approx(
        {"a": 10, "b": 10, "c": 10}, abs=2
    )


def test_shares_are_of_work_not_of_requests() -> None:
    """One tenant's films cost six times the other's: it has a sixth as many answered while both have work."""
    scheduler = Scheduler(Budget(rows=6), patience_s=1e6)
    scheduler.add(Request(id=n, operation="embed_image", tenant="large", rows=6.0) for n in range(50))
    scheduler.add(Request(id=100 + n, operation="embed_image", tenant="small", rows=1.0) for n in range(300))
    tenants = [request.tenant for request in served(scheduler, 40)]
    assert tenants.count("small") == pytest.approx(6 * tenants.count("large"), abs=6)


def test_ever_new_tenants_do_not_starve_one_who_has_had_much() -> None:
    scheduler = Scheduler(Budget(rows=1), patience_s=2.0)
    scheduler.add(Request(id=n, operation="embed_image", tenant="old", arrival=0.0) for n in range(10))
    served(scheduler, 9)
    gone: list[Request] = []
    for step in range(40):
        now = 0.1 * step
        scheduler.add(
            Request(id=100 + 2 * step + k, operation="embed_image", tenant=f"new{step}{k}", arrival=now) for k in (0, 1)
        )
        gone += served(scheduler, 1, now)
    assert 9 in ids(gone)


def test_adapters_in_use_count_and_nobody_overtakes_who_waits_for_one() -> None:
    waiting = (Request(id=1, operation="classify", adapter="b"), Request(id=2, operation="embed_image", arrival=1.0))
    busy = choose(waiting, 1.0, Budget(adapters=1), 1, in_use=frozenset("a"))
    assert busy.chosen == ()
    assert ids(choose(waiting, 1.0, Budget(adapters=2), 1, in_use=frozenset("a")).chosen) == {1, 2}
    assert ids(choose(waiting, 1.0, Budget(adapters=1), 1, in_use=frozenset("b")).chosen) == {1, 2}


@given(requests(most=12), st.data())
@settings(max_examples=50)
def test_a_request_is_never_overtaken_by_those_that_come_after_its_patience(
    waiting: tuple[Request, ...], data: st.DataObject
) -> None:
    """Newcomers at every step, all with tight deadlines: the first ones still leave within a bounded number of steps."""
    scheduler = Scheduler(Budget(rows=4, chats=2), patience_s=1.0)
    old = tuple(Request(id=r.id, operation="embed_image", arrival=0.0) for r in waiting)
    scheduler.add(old)
    gone: set[int] = set()
    for step in range(len(old) + 3):
        now = 1.1 + step
        newcomers = data.draw(st.integers(0, 4))
        fresh = (1000 + 10 * step + i for i in range(newcomers))
        scheduler.add(Request(id=n, operation="embed_image", arrival=now, deadline=now + 0.5) for n in fresh)
        batch = scheduler.next(now).batch
        gone |= ids(batch.requests) if batch else set()
    assert ids(old) <= gone


@dataclass
class Traffic:
    """Endless work in both lanes."""

    scheduler: Scheduler
    count: int = 0

    def step(self, now: float, generating: int) -> Step:
        self.count += 1
        self.scheduler.add([Request(id=self.count, operation="zero_shot", arrival=now)])
        return self.scheduler.next(now, generating)


def test_the_lanes_take_turns_when_both_have_work() -> None:
    traffic = Traffic(Scheduler(Budget(rows=1)))
    steps = [traffic.step(float(now), generating=2) for now in range(20)]
    turns = [step.generates for step in steps]
    assert turns == [False, True] * 10


def test_a_lane_alone_never_waits_for_the_other() -> None:
    scheduler = Scheduler()
    assert [scheduler.next(float(now), generating=1).generates for now in range(3)] == [True, True, True]
    traffic = Traffic(Scheduler(Budget(rows=1)))
    assert all(traffic.step(float(now), generating=0).batch for now in range(3))
    assert Scheduler().next(0.0) == Step()


def test_expired_requests_are_told_even_on_the_chats_turn() -> None:
    scheduler = Scheduler()
    scheduler.add([Request(id=1, operation="embed_image", arrival=0.0)])
    assert scheduler.next(0.0, generating=1).batch is not None
    scheduler.add([Request(id=2, operation="embed_image", arrival=0.0, deadline=1.0)])
    scheduler.add([Request(id=3, operation="embed_image", arrival=0.0)])
    step = scheduler.next(5.0, generating=1)
    assert step.generates
    assert ids(step.expired) == {2}
    assert len(scheduler) == 1


def test_a_withdrawn_request_never_runs() -> None:
    scheduler = Scheduler()
    scheduler.add(Request(id=number, operation="embed_image", arrival=0.0) for number in (1, 2))
    assert scheduler.cancel(1)
    assert not scheduler.cancel(1)
    batch = scheduler.next(0.0).batch
    assert batch is not None
    assert ids(batch.requests) == {2}
    assert not scheduler.cancel(2)


def test_the_same_request_cannot_wait_twice() -> None:
    scheduler = Scheduler()
    scheduler.add([Request(id=1, operation="embed_image")])
    with pytest.raises(InvalidRequest, match="waiting already"):
        scheduler.add([Request(id=1, operation="embed_image")])


def test_chats_wait_for_a_free_place_without_holding_up_others() -> None:
    scheduler = Scheduler(Budget(chats=1))
    scheduler.add([Request(id=1, operation="chat", arrival=0.0), Request(id=2, operation="chat", arrival=0.1)])
    scheduler.add([Request(id=3, operation="embed_image", arrival=0.2)])
    batch = scheduler.next(1.0, generating=0).batch
    assert batch is not None
    assert ids(batch.requests) == {1, 3}
    assert scheduler.next(1.0, generating=1).generates
    assert scheduler.next(1.0, generating=1).batch is None
    later = scheduler.next(1.0, generating=0).batch
    assert later is not None
    assert ids(later.requests) == {2}


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'rows'"):
        Budget(rows=0)
