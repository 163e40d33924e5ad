"""A simulated reader's clicks: where they fall, and what an answer that follows them is worth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from adapters.tasks.prompting import Prompt
from training.finetuning.segmentation.clicks import CLICKS, click_through
from training.finetuning.segmentation.reader import (
    box_around,
    first_click,
    next_click,
    random_box,
    random_click,
    spoil,
)


def test_clicks_fall_where_the_answer_is_wrong() -> None:
    truth, found = np.zeros((50, 50), bool), np.zeros((50, 50), bool)
    truth[10:30, 10:30] = True
    first = next_click(found, truth)
    assert first.is_inside
    assert (first.row, first.column) == pytest.approx((20, 20), abs=1.5)
    found[10:30, 10:30] = found[30:48, 5:45] = True
    second = next_click(found, truth)
    assert not second.is_inside
    assert second.row > 30
    found[:], found[10:14, 10:30] = False, True
    third = next_click(found, truth)
    assert third.is_inside
    assert third.row > 14


def test_the_first_click_is_where_words_missed_even_beside_a_larger_surplus() -> None:
    truth, found = np.zeros((50, 50), bool), np.zeros((50, 50), bool)
    truth[10:30, 10:30] = True
    found[10:24, 10:30] = found[32:50, :] = True
    first = first_click(found, truth)
    assert first.is_inside
    assert 24 <= first.row < 30
    assert not next_click(found, truth).is_inside
    again = first_click(truth, truth)
    assert (again.row, again.column) == pytest.approx((20, 20), abs=1.5)


def test_dice_follows_the_clicks() -> None:
    """Against an answer that draws quarters of the aim where they were clicked, and drops what was clicked as outside."""
    aim, surplus = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    aim[0:20, 0:20], surplus[30:36, 30:36] = True, True
    asked: list[Prompt] = []

    def answer(prompt: Prompt) -> np.ndarray:
        asked.append(prompt)
        found = surplus.copy()
        for point in prompt.points:
            row, column = 10 * (int(point.row) // 10), 10 * (int(point.column) // 10)
            if point.is_inside:
                found[row : row + 10, column : column + 10] = True
            else:
                found &= ~surplus
        return found

    words = np.zeros((40, 40), bool)
    words[0:10, 0:10] = True
    dice = click_through(first_click(words, aim), aim, answer)
    assert [len(prompt.points) for prompt in asked] == [*range(1, CLICKS + 1)]
    assert all(later.points[: len(one.points)] == one.points for one, later in pairwise(asked))
    assert dice[0] == pytest.approx(2 * 100 / (136 + 400))
    assert list(dice) == sorted(dice)
    assert dice[-1] == pytest.approx(1.0)


def test_a_box_lies_close_around_the_mask() -> None:
    mask = np.zeros((30, 40), bool)
    mask[5:9, 12:33] = True
    box = box_around(mask)
    assert (box.top, box.left, box.bottom, box.right) == (5, 12, 9, 33)


def test_random_clicks_fall_in_what_is_wrong_and_say_so() -> None:
    truth, found, sides = np.zeros((40, 40), bool), np.zeros((40, 40), bool), set()
    truth[5:20, 5:20], found[10:30, 5:25] = True, True
    for seed in range(60):
        random = np.random.default_rng(seed)
        first, later = (random_click(found, truth, random, is_first=is_first) for is_first in (True, False))
        assert first.is_inside
        for point in (first, later):
            cell = int(point.row), int(point.column)
            assert truth[cell] == point.is_inside
            assert found[cell] != point.is_inside
        sides.add(later.is_inside)
        exact = random_click(truth, truth, random, is_first=False)
        assert exact.is_inside
        assert truth[int(exact.row), int(exact.column)]
    assert sides == {True, False}


def test_random_boxes_lie_about_the_mask_within_the_grid() -> None:
    mask = np.zeros((40, 40), bool)
    mask[0:20, 10:40] = True
    for seed in range(20):
        box = random_box(mask, np.random.default_rng(seed))
        assert box.top == 0 or box.top <= 1.6
        assert 18.4 <= box.bottom <= 21.6
        assert 7.6 <= box.left <= 12.4
        assert 37.6 <= box.right <= 40


def test_spoilt_starts_err_here_and_there_and_some_hold_nothing() -> None:
    logits = np.full((40, 40), -3.0, np.float32)
    logits[10:30, 10:30] = 3.0
    wrong = [float(((spoil(logits, np.random.default_rng(seed)) > 0) != (logits > 0)).mean()) for seed in range(80)]
    assert min(wrong) == 0.0
    assert 0.25 in wrong  # emptied
    assert sum(0.01 < share < 0.24 for share in wrong) > 15
    assert np.array_equal(spoil(logits, np.random.default_rng(5)), spoil(logits, np.random.default_rng(5)))
