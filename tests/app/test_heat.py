"""The heat map lies where the patches lie, and is clear where nothing speaks."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from adapters.tasks.heat import heat_png
from app.heat import FLOOR, overlay, read_heat, strange_overlay
from foundation.preprocess import InputContract
from serving.schemas.anomaly import HeatPicture
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


def as_sent(values: np.ndarray) -> HeatPicture:
    png, (low, high) = heat_png(values.astype(np.float32))
    return HeatPicture(png="data:image/png;base64," + base64.b64encode(png).decode(), low=low, high=high)


def test_an_anomaly_map_has_the_values_it_was_sent_with() -> None:
    values = np.random.default_rng(0).random((30, 20)).astype(np.float32)
    np.testing.assert_allclose(read_heat(as_sent(values)), values, atol=1e-4)


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_only_what_is_strange_among_normal_films_is_coloured(mode: str) -> None:
    values = np.full((120, 60), FLOOR - 0.05)
    values[60:, :30] = 1.0
    contract = InputContract(size=64, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode=mode)
    shown = strange_overlay(as_sent(values), contract)
    assert shown.shape == (64, 64, 4)
    left = 0 if mode == "squash" else 16  # where the film begins in the square
    assert shown[36:, left + 2 : left + 12, 3].min() > 150
    assert shown[:28, :, 3].max() == 0
    assert shown[:, left + 40 :, 3].max(initial=0) == 0
