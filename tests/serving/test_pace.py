"""The fitted pace: exact on a line, sane on anything, and it follows a machine that changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.pace import FEWEST_ROWS, OVERHEAD_SHARE, Pace, Paces

batches = st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 10.0)), min_size=1, max_size=40)


def learnt(pairs: list[tuple[int, float]]) -> Pace:
    pace = Pace()
    for rows, seconds in pairs:
        pace = pace.after(rows, seconds)
    return pace


@given(st.floats(1e-4, 1.0), st.floats(0.0, 1.0), st.lists(st.integers(1, 64), min_size=2, max_size=30))
def test_a_line_is_found(per_row: float, overhead: float, sizes: list[int]) -> None:
    pace = learnt([(rows, per_row * rows + overhead) for rows in sizes])
    if len(set(sizes)) > 1:
        assert pace.seconds_for(7) == pytest.approx(7 * per_row + overhead, rel=1e-3, abs=1e-6)
    else:
        assert pace.seconds_for(sizes[0]) == pytest.approx(sizes[0] * per_row + overhead)


@given(batches)
def test_it_is_never_negative_and_never_falls_with_the_rows(pairs: list[tuple[int, float]]) -> None:
    pace = learnt(pairs)
    told = [pace.seconds_for(rows) for rows in (1, 2, 10, 100)]
    assert told == sorted(told)
    assert told[0] > 0.0


def test_it_follows_a_machine_that_became_slower() -> None:
    pace = learnt([(4, 0.1)] * 200 + [(4, 0.4)] * 100)
    assert pace.seconds_for(4) == pytest.approx(0.4, rel=0.01)


def test_batches_grow_until_little_of_their_time_is_overhead() -> None:
    """0.1 s a batch and 0.05 s a row: at 18 rows a tenth is overhead."""
    paces = Paces()
    assert paces.lane_rows(64) == FEWEST_ROWS
    for rows in (1, 2, 4, 1, 4):
        paces.note(rows, 0.1 + 0.05 * rows, is_wide=False)
    assert paces.lane_rows(64) == pytest.approx(18.0)
    assert paces.lane_rows(8) == 8
    share = 0.1 / paces.narrow.seconds_for(paces.lane_rows(64))
    assert share == pytest.approx(OVERHEAD_SHARE)


def test_what_was_known_of_sizes_stays_while_all_batches_are_alike() -> None:
    paces = Paces()
    for rows in (1, 8):
        paces.note(rows, 0.01 + 0.01 * rows, is_wide=False)
    known = paces.lane_rows(64)
    for _ in range(2000):
        paces.note(8, 0.09, is_wide=False)
    assert paces.lane_rows(64) == pytest.approx(known, rel=0.01)


@given(batches)
def test_a_batch_is_never_smaller_than_a_few_nor_larger_than_allowed(pairs: list[tuple[int, float]]) -> None:
    paces = Paces()
    for rows, seconds in pairs:
        paces.note(rows, seconds, is_wide=False)
    assert FEWEST_ROWS <= paces.lane_rows(8) <= 8
    assert paces.lane_rows(2) == 2
