"""Run lengths equal a plain definition and COCO's own examples, and come back as the mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adapters.tasks.rle import compress, decompress, from_rle, runs_of, to_rle
from foundation.errors import InvalidRequest

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20))


def slow_runs(mask: np.ndarray) -> list[int]:
    """Walk down each column and count."""
    runs, current = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != current:
                runs.append(0)
                current = not current
            runs[-1] += 1
    return runs


@settings(max_examples=60, deadline=None)
@given(mask=MASKS)
def test_equal_to_walking_the_columns(mask: np.ndarray) -> None:
    assert runs_of(mask) == slow_runs(mask)
    assert np.array_equal(from_rle(to_rle(mask)), mask)


@given(runs=st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
def test_text_holds_any_runs(runs: list[int]) -> None:
    assert decompress(compress(runs)) == runs


def test_the_examples_of_the_coco_api() -> None:
    """maskApi.h: [0 0 1 1 1 0 1] is [2 3 1 1], [1 1 1 1 1 1 0] is [0 6 1]."""
    assert runs_of(np.array([[0, 0, 1, 1, 1, 0, 1]], dtype=bool)) == [2, 3, 1, 1]
    assert runs_of(np.array([[1, 1, 1, 1, 1, 1, 0]], dtype=bool)) == [0, 6, 1]
    assert compress([2, 3, 1, 1]) == "231N"
    assert np.array_equal(from_rle({"size": [1, 7], "counts": [2, 3, 1, 1]})[0], np.array([0, 0, 1, 1, 1, 0, 1], bool))


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 2], "counts": [1, 2]},
        {"size": [2, 2], "counts": [9, -5]},
        {"size": [0, 2], "counts": []},
        {"size": [2], "counts": [4]},
        {"size": [1 << 20, 1 << 20], "counts": [1 << 40]},
        {"size": [2, 2], "counts": "2\x01"},
        {"size": [2, 2], "counts": "o"},
        {"counts": "4"},
    ],
)
def test_runs_that_make_no_mask_are_refused(rle: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        from_rle(rle)
