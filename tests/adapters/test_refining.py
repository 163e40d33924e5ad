"""A click changes one region, to its own side, and what marks speak of is chosen by part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters.tasks.prompting import Box, Point, Prompt
from adapters.tasks.refining import Grid, Refiner, Words, answer_marks, correct, meant, near, settle

SIDE = 48


def logits(*boxes: tuple[int, int, int, int]) -> Grid:
    """Above zero within boxes of (top, bottom, left, right)."""
    grid = np.full((SIDE, SIDE), -4.0, np.float32)
    for top, bottom, left, right in boxes:
        grid[top:bottom, left:right] = 4.0
    return grid


def refiner() -> Refiner:
    torch.manual_seed(0)
    return Refiner(4).eval().requires_grad_(False)


X = torch.randn(4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_an_inside_click_adds_the_region_under_it_alone() -> None:
    before, after = logits((10, 20, 10, 20)), logits((10, 20, 12, 30), (30, 40, 30, 40))
    settled = settle(before, after, Point(15, 25))
    assert np.array_equal(settled > 0, logits((10, 20, 10, 30)) > 0)  # neither taken away on the left, nor added below
    assert np.array_equal(settle(before, after, Point(15, 15)) > 0, before > 0)  # it was inside already


def test_an_outside_click_takes_the_region_under_it_alone() -> None:
    before, after = logits((10, 20, 10, 30), (30, 40, 30, 40)), logits((10, 20, 10, 20), (2, 6, 2, 6))
    settled = settle(before, after, Point(15, 25, is_inside=False))
    assert np.array_equal(settled > 0, logits((10, 20, 10, 20), (30, 40, 30, 40)) > 0)


@pytest.mark.parametrize("is_inside", [True, False])
def test_a_click_that_the_refiner_ignores_is_put_through_around_it(is_inside: bool) -> None:
    before = logits() if is_inside else -logits()
    settled = settle(before, before, Point(24.5, 24.5, is_inside))
    changed = (settled > 0) != (before > 0)
    assert changed[24, 24]
    assert 1 <= changed.sum() <= 30


def test_clicks_hold_whatever_the_refiner_says() -> None:
    random, start = np.random.default_rng(0), logits((8, 30, 8, 30))
    for _ in range(20):
        places = random.choice(SIDE * SIDE // 64, size=4, replace=False)  # 8 cells apart at least
        points = tuple(Point(8 * (p // 6) + 4.5, 8 * (p % 6) + 4.5, bool(n % 2)) for n, p in enumerate(places))
        answer = correct(refiner(), X, start, Prompt(points))
        last = points[-1]
        assert (answer[int(last.row), int(last.column)] > 0) == last.is_inside


def test_a_box_chooses_and_corrects_nothing() -> None:
    start = logits((4, 14, 4, 14), (30, 40, 30, 40))
    [answer] = answer_marks(refiner(), Words(X, start[None]), Prompt(boxes=(Box(29, 29, 41, 41),)), [0], 0)
    assert answer is not None
    assert np.array_equal(answer.logits > 0, logits((30, 40, 30, 40)) > 0)
    assert not answer.is_pointed


def test_marks_choose_parts() -> None:
    start = logits((4, 14, 4, 14), (30, 40, 30, 40))
    upper, lower = (logits(box) > 0 for box in ((4, 14, 4, 14), (30, 40, 30, 40)))
    assert np.array_equal(meant(start, Prompt((Point(9, 9),)), 0), upper)
    assert np.array_equal(meant(start, Prompt((Point(28, 35),)), 0), lower)  # the nearest
    assert not meant(start, Prompt((Point(4, 40),)), 0).any()  # too far from any
    assert np.array_equal(meant(start, Prompt(boxes=(Box(29, 29, 41, 41),)), 0), lower)
    assert not meant(start, Prompt(boxes=(Box(29, 29, 41, 33),)), 0).any()  # too little of it
    assert np.array_equal(meant(start, Prompt((Point(9, 9), Point(35, 35))), 0), upper | lower)


def test_points_speak_of_the_class_they_lie_in_or_the_likeliest() -> None:
    first, second = logits((4, 14, 4, 14)), logits((30, 40, 30, 40))
    second[20:24, 20:24] = -1.0
    words = Words(X, np.stack([first, second]))

    def answered(*points: Point, asked: tuple[int, ...] = (0, 1)) -> list[bool]:
        return [one is not None for one in answer_marks(refiner(), words, Prompt(points), asked, 1)]

    assert answered(Point(9, 9)) == [True, False]
    assert answered(Point(35, 35)) == [False, True]
    assert answered(Point(22, 22)) == [False, True]
    assert answered(Point(22, 22), asked=(0,)) == [True, False]
    assert answered(Point(9, 9), Point(35, 35)) == [True, True]
    assert answered(Point(9, 9), Point(35, 35, is_inside=False)) == [True, False]


def test_what_was_drawn_stays_when_a_click_adds_to_it() -> None:
    words = Words(X, logits((4, 30, 4, 20))[None])
    [answer] = answer_marks(refiner(), words, Prompt((Point(10, 40),)), [0], 1)
    assert answer is not None
    assert (answer.logits > 0)[words.logits[0] > 0].all()
    assert answer.logits[10, 40] > 0


def test_the_newest_click_is_told_by_its_side() -> None:
    assert near(Point(10.5, 20.5), SIDE)[10, 20] == 1.0
    assert near(Point(10.5, 20.5, is_inside=False), SIDE)[10, 20] == -1.0
