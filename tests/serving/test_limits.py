"""Budgets never overfill, give everything back, and say when to come again."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import InvalidRequest, Overloaded
from serving.limits import Budget, ServerLimits, check_count, check_texts


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=40))
def test_a_budget_is_never_overfilled_but_by_a_lone_request(steps: list[tuple[bool, int]]) -> None:
    budget, held = Budget(10, "places"), []
    for is_taking, amount in steps:
        if not is_taking:
            if held:
                held.pop()[1].close()
            continue
        before = budget.in_use
        stack = ExitStack()
        try:
            stack.enter_context(budget.take(amount))
        except Overloaded:
            assert before > 0
            assert before + amount > 10
            assert budget.in_use == before
        else:
            assert before == 0 or before + amount <= 10
            held.append((amount, stack))
        assert budget.in_use == sum(taken for taken, _ in held)
    for _, stack in held:
        stack.close()
    assert budget.in_use == 0


def test_a_failing_holder_gives_its_share_back() -> None:
    budget = Budget(1, "places")
    with pytest.raises(KeyError), budget.take(1):
        raise KeyError
    assert budget.in_use == 0


def test_retry_after_follows_how_long_holders_stay() -> None:
    clock = FakeClock()
    budget = Budget(1, "places", clock)
    assert budget.retry_after_s == 1.0
    for _ in range(30):
        with budget.take(1):
            clock.now += 8
    with budget.take(1), pytest.raises(Overloaded, match="1 of 1 places") as refused, budget.take(1):
        pass
    assert refused.value.retry_after_s == pytest.approx(8, abs=0.1)
    for _ in range(30):
        with budget.take(1):
            clock.now += 500
    assert budget.retry_after_s == 60


def test_counts_and_texts_are_named() -> None:
    check_count("labels", 3, 3)
    check_count("input", 0, 3, least=0)
    for count in (0, 4):
        with pytest.raises(InvalidRequest, match="labels") as refused:
            check_count("labels", count, 3)
        assert refused.value.param == "labels"
    check_texts("labels", ["abc"], 3)
    for text in ("abcd", " "):
        with pytest.raises(InvalidRequest) as refused:
            check_texts("labels", ["a", text], 3)
        assert refused.value.param == "labels[1]"


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="max_bytes_in_flight"):
        ServerLimits(max_body_bytes=10, max_bytes_in_flight=9)
    with pytest.raises(InvalidRequest, match="max_items_in_flight"):
        ServerLimits(max_items_in_flight=0)
