"""The heat map lies where the patches lie, and is clear where nothing speaks."""

from __future__ import annotations

import numpy as np

from app.heat import overlay
from serving.schemas.chat import HeatMap


def test_the_hottest_cell_lies_over_its_part_of_the_film() -> None:
    grid = [[0.0] * 7 for _ in range(7)]
    grid[1][5] = 1.0
    shown = overlay(HeatMap(label="mass", grid=grid), 224)
    assert (shown.shape, shown.dtype) == ((224, 224, 4), np.uint8)
    row, column = np.unravel_index(int(shown[..., 3].argmax()), (224, 224))
    assert (row // 32, column // 32) == (1, 5)
    assert shown[160:, :96, 3].max() == 0


def test_a_grid_that_is_not_square_covers_the_film() -> None:
    shown = overlay(HeatMap(label="mass", grid=[[0.0, 1.0, 0.0]]), 90)
    assert shown[:, 45, 3].min() > 150
    assert shown[:, 0, 3].max() < 60


def test_opacity_grows_with_the_value() -> None:
    steps = [overlay(HeatMap(label="mass", grid=[[value]]), 8)[4, 4, 3] for value in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert steps[0] == 0
    assert steps == sorted(steps)
    assert len(set(steps)) == 5
