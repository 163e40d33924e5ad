"""The pointing game: boxes in the film's own pixels, the hottest place, and two who look at nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.manifest import Row
from training.pointing import boxes_of, hits, hottest, point


def row(boxes: object) -> Row:
    return Row(1, "a", Path("a.png"), "test", "p", "p", extra={"boxes": boxes})


def test_boxes_come_in_the_films_pixels() -> None:
    given = [{"label": "Mass", "xywh_1024": [512, 256, 128, 64]}, {"label": "Mass", "xywh": [1, 2, 3, 4]}]
    scaled, own = boxes_of(row(given), (512, 256))
    assert scaled == (128.0, 128.0, 160.0, 160.0)
    assert own == (2.0, 1.0, 6.0, 4.0)
    assert boxes_of(row(None), (10, 10)) == []


def test_the_hottest_place_is_the_middle_of_its_plateau() -> None:
    heat = np.zeros((20, 20), np.float32)
    heat[4:9, 10:15] = 1.0
    assert hottest(heat) == (6.5, 12.5)
    assert hits((6.5, 12.5), [(4.0, 10.0, 9.0, 15.0)])
    assert not hits((9.0, 12.5), [(4.0, 10.0, 9.0, 15.0)])


def test_a_film_is_scored_beside_centre_and_chance() -> None:
    good, bad = np.zeros((2, 40, 40), np.float32)
    good[5, 5], bad[30, 30] = 1.0, 1.0
    scored = point({"good": good, "bad": bad}, [(0.0, 0.0, 10.0, 20.0), (0.0, 0.0, 10.0, 10.0)])
    assert scored == pytest.approx({"good": 1.0, "bad": 0.0, "centre": 0.0, "random place": 200 / 1600})
    assert point({"good": good}, [(15.0, 15.0, 25.0, 25.0)])["centre"] == 1.0
