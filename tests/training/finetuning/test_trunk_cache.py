"""Further looks at films: each is made once, whatever other looks are asked for beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adapters.tasks.levels import pool_levels
from foundation.look import Look
from foundation.preprocess import InputContract
from training.finetuning.trunk_cache import look_cache, to_pixels

CONTRACT = InputContract(size=32, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bicubic", resize_mode="squash", fill_color=0)


class Seen:
    def __init__(self, levels: list[Tensor]) -> None:
        self.levels = levels


class Tower(nn.Module):
    """Two levels; keeps the sides of what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.sides: list[int] = []

    def forward(self, pixels: Tensor) -> Seen:
        self.sides.append(pixels.shape[-1])
        low = self.conv(pixels)
        return Seen([low, low[:, :3].relu()])


def test_a_look_is_made_once_whatever_is_asked_for_beside_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower, films = Tower(), np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)

    def made(*looks: Look) -> np.ndarray:
        tower.sides.clear()
        return look_cache(
            tower, "one", films, CONTRACT, tmp_path, looks=looks, pools=("mean", "max"), is_quiet=True, batch_size=4
        )

    upright, mirrored, large = Look(), Look(is_mirrored=True), Look(64)
    first = made(upright, large)
    assert tower.sides == [32] * 2 + [64] * 5  # by fours; one by one at four times the area
    second = made(large, mirrored, upright)
    assert tower.sides == [32, 32]  # the mirrored one alone
    width = 2 * (4 + 3)
    assert first.shape == (5, 2 * width)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(second[:, :width], first[:, width:])
    np.testing.assert_array_equal(second[:, 2 * width :], first[:, :width])
    with torch.inference_mode():
        expected = pool_levels(tower(mirrored.of(to_pixels(films, CONTRACT))).levels, ("mean", "max"))
    np.testing.assert_allclose(second[:, width : 2 * width], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_other_sizes_are_pooled_in_a_way_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower, films = Tower(), np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
    looks = (Look(64), Look(is_mirrored=True))
    made = look_cache(
        tower, "one", films, CONTRACT, tmp_path, looks=looks, pools=("mean", "max"), size_pools=("std",), is_quiet=True
    )
    pixels = to_pixels(films, CONTRACT)
    with torch.inference_mode():
        shown = [
            pool_levels(tower(look.of(pixels)).levels, names)
            for look, names in zip(looks, (("std",), ("mean", "max")), strict=True)
        ]
    np.testing.assert_allclose(made, torch.cat(shown, dim=1).numpy(), rtol=1e-5, atol=1e-6)
