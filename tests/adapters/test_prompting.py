"""Marks land on the same places of the square as the film's pixels do."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.tasks.prompting import Box, Point, Prompt, draw, on_grid
from foundation.errors import InvalidRequest
from foundation.preprocess import RESIZE_MODES, InputContract, fit_mask, placement


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("film", [(128, 128), (150, 100), (90, 160)])
def test_marks_lie_where_a_mask_of_the_same_pixels_lies(mode: str, film: tuple[int, int]) -> None:
    contract = InputContract(64, (0.5,) * 3, (0.5,) * 3, resize_mode=mode)
    height, width = film
    box = Box(height * 0.4, width * 0.45, height * 0.6, width * 0.65)
    mask = np.zeros(film, bool)
    mask[round(box.top) : round(box.bottom), round(box.left) : round(box.right)] = True
    prompt = Prompt((Point(height / 2, width * 0.55), Point(height * 0.3, width * 0.5, is_inside=False)), (box,))
    hints = draw(on_grid(prompt, film, placement(height, width, contract), 32), 32)
    half = fit_mask(mask, contract).reshape(32, 2, 32, 2).mean(axis=(1, 3)) / 255
    assert np.abs(hints[2] - half).mean() < 0.02
    assert half[hints[0] > 0].min() > 0.9  # the point lies inside the box
    assert hints[0].any()
    assert hints[1].any()
    assert half[hints[1] > 0].max() < 0.1


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt((Point(100, 5),)),
        Prompt((Point(5, -1),)),
        Prompt((), (Box(5, 5, 5, 9),)),
        Prompt((), (Box(0, 0, 101, 9),)),
        Prompt((Point(5, 5, is_inside=False),)),
    ],
)
def test_marks_outside_the_film_are_refused(prompt: Prompt) -> None:
    with pytest.raises(InvalidRequest):
        prompt.check(100, 80)
