"""Side and zone are told from a heat map, and are unknown where it does not tell."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.places import UNKNOWN, Place, place_of


def spots(*cells: tuple[int, int], size: int = 8, base: float = -0.4, peak: float = 0.3) -> np.ndarray:
    likeness = np.full((size, size), base)
    for row, column in cells:
        likeness[row, column] = peak
    return likeness


@pytest.mark.parametrize(
    ("name", "cells", "place"),
    [
        ("mass", [(1, 6)], Place("left", "upper")),  # the right of the picture is the patient's left
        ("mass", [(3, 1)], Place("right", "middle")),
        ("mass", [(6, 1)], Place("right", "lower")),
        ("consolidation", [(6, 1), (6, 6)], Place("bilateral", "lower")),
        ("effusion", [(6, 1)], Place("right", None)),  # fluid has no zone
        ("cardiomegaly", [(4, 5)], UNKNOWN),  # nor the heart a side
    ],
)
def test_a_place_is_told(name: str, cells: list[tuple[int, int]], place: Place) -> None:
    assert place_of(name, spots(*cells)) == place


def test_a_map_that_does_not_tell_gives_no_place() -> None:
    assert place_of("mass", np.zeros((8, 8))) == UNKNOWN
    assert place_of("mass", spots((1, 6), peak=-0.1)) == UNKNOWN  # nothing speaks for it
    two = spots((1, 6))
    two[1, 1] = 0.3 - 0.15 * 0.7  # 0.85 of the way: neither one side nor both
    assert place_of("mass", two) == UNKNOWN
    assert place_of("mass", np.array([[0.3], [0.1]])) == UNKNOWN  # one column has no sides


def test_a_middle_column_belongs_to_neither_side() -> None:
    likeness = spots((1, 2), (1, 4), size=5)
    assert place_of("effusion", likeness) == Place("left", None)


def test_a_mirrored_map_is_the_other_side() -> None:
    rng = np.random.default_rng(0)
    swapped = {"left": "right", "right": "left", "bilateral": "bilateral", None: None}
    seen = set()
    for _ in range(200):
        likeness = rng.normal(size=(4, 4))
        side = place_of("nodule", likeness).side
        assert place_of("nodule", likeness[:, ::-1]).side == swapped[side]
        seen.add(side)
    assert seen == set(swapped)
