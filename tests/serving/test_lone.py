"""Lone batches go the way that was faster of late, and a machine that changes is followed."""

from __future__ import annotations

from random import Random

import pytest

from serving.lone import Lone

RETRY_EVERY = 32


def run(lone: Lone, batches: int, *, wide_s: float, narrow_s: float, rows: float = 1) -> list[bool]:
    """So many batches, each as long as its way takes; which of them ran on all cores."""
    ways = []
    for _ in range(batches):
        ways.append(lone.prefers_wide(rows))
        lone.note(rows, rows * (wide_s if ways[-1] else narrow_s), is_wide=ways[-1])
    return ways


def settled(*, wide_s: float, narrow_s: float) -> Lone:
    lone = Lone(retry_every=RETRY_EVERY)
    run(lone, 100, wide_s=wide_s, narrow_s=narrow_s)
    return lone


def test_both_ways_are_tried_first() -> None:
    assert run(Lone(), 2, wide_s=0.01, narrow_s=0.02) == [True, False]


@pytest.mark.parametrize(("wide_s", "narrow_s"), [(0.012, 0.018), (0.03, 0.018), (0.2, 0.018)])
def test_the_faster_way_goes_and_trials_of_the_other_cost_little(wide_s: float, narrow_s: float) -> None:
    ways = run(settled(wide_s=wide_s, narrow_s=narrow_s), 1000, wide_s=wide_s, narrow_s=narrow_s)
    tried = sum(is_wide != (wide_s < narrow_s) for is_wide in ways)
    assert 7 <= tried <= 1000 / RETRY_EVERY
    if max(wide_s, narrow_s) < 4 * min(wide_s, narrow_s):
        assert tried * abs(wide_s - narrow_s) <= 1000 * min(wide_s, narrow_s) / RETRY_EVERY


@pytest.mark.parametrize(("before_s", "after_s"), [(0.05, 0.012), (0.012, 0.05)])
def test_a_machine_that_became_quieter_or_busier_is_followed_soon(before_s: float, after_s: float) -> None:
    """All cores take `before_s` at first and `after_s` then; one takes 0.018 all the time."""
    ways = run(settled(wide_s=before_s, narrow_s=0.018), 300, wide_s=after_s, narrow_s=0.018)
    later = ways[4 * RETRY_EVERY + 8 :]
    assert sum(is_wide != (after_s < 0.018) for is_wide in later) <= len(later) / RETRY_EVERY + 2


def test_one_batch_that_was_held_up_changes_nothing() -> None:
    lone = settled(wide_s=0.012, narrow_s=0.018)
    lone.note(1, 1.0, is_wide=True)
    assert run(lone, RETRY_EVERY, wide_s=0.012, narrow_s=0.018).count(False) <= 2


def test_more_rows_go_by_what_more_rows_take() -> None:
    """0.01 s and 0.001 s a row on all cores; 0.004 s a row on one: from four rows on all cores are faster."""
    lone = Lone(retry_every=10**6, _early=10.0**6)
    for is_wide in (True, False):
        for rows in (1, 1, 8, 1, 8, 1, 8):
            lone.note(rows, 0.01 + 0.001 * rows if is_wide else 0.004 * rows, is_wide=is_wide)
    lone.prefers_wide(1)  # the trial that the surprise of the first eight rows brought about
    assert [lone.prefers_wide(rows) for rows in (1, 2, 4, 8)] == [False, False, True, True]


def test_the_first_batch_of_a_way_says_nothing_about_it() -> None:
    """All cores take 0.012 s, but 0.025 after a batch on one core or beside others, which takes 0.018."""
    lone, ways = Lone(retry_every=RETRY_EVERY), [False]
    for number in range(600):
        if number == 300:
            lone.interrupt()
        is_wide = lone.prefers_wide(1)
        is_first = not ways[-1] or number == 300
        lone.note(1, (0.025 if is_first else 0.012) if is_wide else 0.018, is_wide=is_wide)
        ways.append(is_wide)
    assert ways[5 * RETRY_EVERY :].count(False) <= 600 / RETRY_EVERY


def test_a_way_that_was_tried_is_not_tried_by_one_batch_alone() -> None:
    ways = run(settled(wide_s=0.03, narrow_s=0.018), 500, wide_s=0.03, narrow_s=0.018)
    starts = [place for place in range(1, 499) if ways[place] and not ways[place - 1]]
    assert len(starts) > 3
    assert all(ways[place + 1] and not ways[place + 2] for place in starts if place < 498)


def test_a_server_that_was_slow_as_it_started_finds_its_way_soon() -> None:
    lone = Lone(retry_every=RETRY_EVERY)
    for seconds, is_wide in ((0.028, False), (0.02, False), (0.081, True), (0.086, True)):
        lone.note(1, seconds, is_wide=is_wide)
    ways = run(lone, 100, wide_s=0.011, narrow_s=0.016)
    assert ways[16:].count(False) <= 8


@pytest.mark.parametrize("seed", range(100))
def test_a_start_that_was_held_up_is_forgotten_however_batches_vary(seed: int) -> None:
    """All cores took 0.29 s while the server started, and take 0.075 s then, more after a batch on one, which takes 0.1 s."""
    draw, lone, ways = Random(seed), Lone(retry_every=RETRY_EVERY), [False]
    for seconds, is_wide in ((0.099, False), (0.091, False), (0.269, True), (0.304, True)):
        lone.note(1, seconds, is_wide=is_wide)
    for _ in range(80):
        ways.append(lone.prefers_wide(1))
        wide_s = max(0.05, draw.gauss(0.075, 0.012)) * (1.0 if ways[-2] else 1.3)
        lone.note(1, wide_s if ways[-1] else draw.gauss(0.1, 0.01), is_wide=ways[-1])
    assert ways.count(False) <= 24


def test_a_server_that_runs_for_long_goes_on_trying() -> None:
    ways = run(settled(wide_s=0.012, narrow_s=0.018), 100_000, wide_s=0.012, narrow_s=0.018)
    assert 0 < ways[-1000:].count(False) <= 1000 / RETRY_EVERY
