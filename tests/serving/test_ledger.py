"""What several fronts count together: budgets and rates hold in sum, also under haste; a lost front gives back what it held."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from foundation.errors import Overloaded
from serving.ledger import _SLOTS, Ledger
from serving.rates import RateLimiter


@pytest.fixture
def parent() -> Iterator[Ledger]:
    ledger = Ledger.create()
    yield ledger
    ledger.close()


def seen_by(parent: Ledger, number: int) -> Ledger:
    """The same memory, as a front has it."""
    return Ledger(os.dup(parent.handle), number)


def test_a_budget_holds_for_all_fronts_together(parent: Ledger) -> None:
    one, two = (seen_by(parent, number).budget(10, "places", "items") for number in (1, 2))
    with ExitStack() as held:
        held.enter_context(one.take(6))
        held.enter_context(two.take(4))
        for budget in (one, two):
            with pytest.raises(Overloaded, match="10 of 10 places"), budget.take(1):
                pass
        assert (one.in_use, two.in_use) == (6, 4)
        parent.wipe(1)
        held.enter_context(two.take(6))
        with pytest.raises(Overloaded), two.take(1):
            pass
    assert parent.in_use(0) == -6  # the row of a front that was wiped while it lived; a new front's begins at 0
    parent.wipe(1)
    assert parent.in_use(0) == 0
    with two.take(99):  # larger than all: taken when nobody holds anything, as alone
        pass


def test_kinds_do_not_mix(parent: Ledger) -> None:
    front = seen_by(parent, 3)
    with front.budget(5, "places", "items").take(5), front.budget(5, "bytes", "bytes").take(5):
        assert (parent.in_use(0), parent.in_use(1)) == (5, 5)


def test_a_rate_holds_for_all_fronts_together(parent: Ledger) -> None:
    """As one limiter would say, request by request, whichever front is asked."""
    now = 100.0
    fronts, alone = [seen_by(parent, number).rates() for number in (1, 2, 3)], RateLimiter(lambda: now)
    for front in fronts:
        front._clock = lambda: now
    for number in range(200):
        now += (0.1, 0.9, 3.0)[number % 3]
        assert admitted(fronts[number * 7 % 3], "ward") == admitted(alone, "ward")
    assert all(admitted(front, "other") for front in fronts)


def admitted(limiter: RateLimiter, key: str) -> bool:
    try:
        limiter.admit(key, 20)
    except Overloaded:
        return False
    return True


def test_more_keys_than_slots_keep_the_fullest(parent: Ledger) -> None:
    limiter = seen_by(parent, 1).rates()
    now = 100.0
    limiter._clock = lambda: now
    for number in range(2 * _SLOTS):
        limiter.admit(f"key-{number}", 600)
        now += 0.2
    assert [admitted(limiter, "slow") for _ in range(6)] == [True] * 5 + [False]


_TAKER = """
import os, sys, time
from foundation.errors import Overloaded
from serving.ledger import Ledger

ledger, place, held = Ledger(int(sys.argv[1]), int(sys.argv[2])), sys.argv[3], 0
budget = ledger.budget(1, "places", "items")
look = ledger.in_use

def look_and_dawdle(kind):
    found = look(kind)
    time.sleep(0.0005)
    return found

ledger.in_use = look_and_dawdle
while held < 100:
    try:
        with budget.take(1):
            os.close(os.open(place, os.O_CREAT | os.O_EXCL))  # fails where another front holds it, too
            os.unlink(place)
            held += 1
    except Overloaded:
        pass
"""


def test_fronts_in_haste_never_share_the_last_place(parent: Ledger, tmp_path: Path) -> None:
    place = str(tmp_path / "held")
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", _TAKER, str(parent.handle), str(number), place],
            pass_fds=[parent.handle],
            cwd=Path(__file__).resolve().parents[2],
        )
        for number in (1, 2, 3)
    ]
    assert [taker.wait(120) for taker in takers] == [0, 0, 0]
    assert parent.in_use(0) == 0
