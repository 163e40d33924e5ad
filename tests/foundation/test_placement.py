"""A mask goes into the model's square and comes back where it was, whatever the film's shape."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.image import MedicalImage
from foundation.preprocess import RESIZE_MODES, InputContract, fit_map, fit_mask, placement, render, to_film

SHAPES = ((96, 96), (120, 80), (70, 131), (333, 200))


def contract(mode: str, size: int = 64) -> InputContract:
    return InputContract(size, (0.5,) * 3, (0.5,) * 3, resize_mode=mode)


def ellipse(height: int, width: int) -> np.ndarray:
    """An ellipse in the middle half: nothing of it is cut off by any mode for shapes up to 2 : 1."""
    y, x = np.mgrid[:height, :width]
    radius = min(height, width) * 0.3
    return ((y - height / 2) / radius) ** 2 + ((x - width / 2) / radius) ** 2 < 1


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_comes_back_where_it_was(mode: str, shape: tuple[int, int]) -> None:
    mask = ellipse(*shape)
    back = to_film(fit_mask(mask, contract(mode)).astype(np.float32) / 255, *shape, contract(mode))
    assert back.shape == shape
    assert dice(back >= 0.5, mask) > 0.96
    centre = [axis.mean() for axis in np.nonzero(back >= 0.5)]
    np.testing.assert_allclose(centre, [axis.mean() for axis in np.nonzero(mask)], atol=0.6)


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_lies_on_what_the_model_sees(mode: str, shape: tuple[int, int]) -> None:
    """The film of a bright ellipse, rendered, is bright exactly where the fitted mask is."""
    mask = ellipse(*shape)
    film = MedicalImage((mask * np.uint8(255))[None], source_format="png")
    assert dice(render(film, contract(mode))[..., 0] >= 128, fit_mask(mask, contract(mode)) >= 128) > 0.97


def test_what_is_cut_off_is_not_claimed() -> None:
    shape = (64, 200)
    everything = np.ones((64, 64), np.float32)
    back = to_film(everything, *shape, contract("shortest"))
    assert back[:, :60].max() == 0  # left of the crop: never seen
    assert back[:, 75:125].min() == 1
    assert to_film(everything, *shape, contract("squash")).min() == 1


def test_placement_says_where_the_film_lies() -> None:
    place = placement(100, 50, contract("longest"))
    assert (place.height, place.width, place.top, place.left) == (64, 32, 0, 16)
    place = placement(100, 50, contract("shortest"))
    assert (place.height, place.width, place.top, place.left) == (128, 64, -32, 0)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_a_map_is_laid_into_the_square_as_a_mask_is(mode: str) -> None:
    mask = np.zeros((90, 60), bool)
    mask[20:70, 10:40] = True
    laid = fit_map(mask.astype(np.float32), contract(mode))
    np.testing.assert_allclose(laid, fit_mask(mask, contract(mode)) / 255, atol=0.01)
