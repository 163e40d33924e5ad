"""Outlines lie where the masks lie in the film the model saw, and their lines stand out."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from adapters.tasks.rle import to_rle
from app.outline import COLORS, FILL, LINE, color_of, outlined, read_mask
from foundation.preprocess import RESIZE_MODES, InputContract, fit_mask
from serving.mask_files import mask_png

MASK = np.zeros((120, 80), bool)
MASK[30:90, 20:50] = True


def test_a_mask_is_read_as_it_was_sent() -> None:
    uri = "data:image/png;base64," + base64.b64encode(mask_png(to_rle(MASK))).decode()
    np.testing.assert_array_equal(read_mask(uri), MASK)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_an_outline_covers_what_the_mask_covers_of_the_models_square(mode: str) -> None:
    contract = InputContract(size=64, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode=mode)
    drawn = outlined(MASK, (1, 2, 3), contract)
    assert (drawn.shape, drawn.dtype) == ((512, 512, 4), np.uint8)
    covered = (drawn[..., 3] > 0).reshape(64, 8, 64, 8).mean(axis=(1, 3))
    assert np.abs(covered - fit_mask(MASK, contract) / 255).mean() < 0.01
    assert set(np.unique(drawn[..., 3])) == {0, FILL, LINE}
    rows = np.flatnonzero((drawn[..., 3] == LINE).any(axis=1))
    inner = drawn[rows[0] : rows[-1] + 1, 256, 3]
    assert inner[0] == inner[-1] == LINE
    assert inner[len(inner) // 2] == FILL


def test_neighbouring_classes_have_colors_of_their_own() -> None:
    assert len({color_of(index) for index in range(len(COLORS))}) == len(COLORS)
    assert color_of(len(COLORS)) == color_of(0)
