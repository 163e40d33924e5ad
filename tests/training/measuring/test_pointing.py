"""The pointing game: boxes in the film's own pixels, the hottest place, and two who look at nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.manifests.manifest import Row
from training.measuring.pointing import hit, hottest, point, regions_of


def row(boxes: object) -> Row:
    return Row(1, "a", Path("a.png"), "test", "p", "p", extra={"boxes": boxes})


def test_boxes_come_in_the_films_pixels() -> None:
    given = [{"label": "Mass", "xywh_1024": [512, 256, 128, 64]}, {"label": "Infiltrate", "xywh": [1, 2, 3, 4]}]
    regions = regions_of(row([*given, {"label": "Mass", "xywh_1024": [0, 0, 4, 2]}]), (512, 256))
    assert set(regions) == {"mass", "infiltration"}
    mass = np.zeros((512, 256), bool)
    mass[128:160, 128:160] = mass[0:1, 0:1] = True
    np.testing.assert_array_equal(regions["mass"], mass)
    assert np.argwhere(regions["infiltration"]).min(0).tolist() == [2, 1]
    assert regions["infiltration"].sum() == 12
    assert regions_of(row(None), (10, 10)) == {}


def test_the_hottest_place_is_the_middle_of_its_plateau() -> None:
    heat = np.zeros((20, 20), np.float32)
    heat[4:9, 10:15] = 1.0
    assert hottest(heat) == (6, 12)
    region = np.zeros((20, 20), bool)
    region[6, 12] = True
    assert hit(heat, region) == 1.0
    assert hit(heat, ~region) == 0.0
    assert hit(np.ones_like(heat), ~region) == 0.0  # points nowhere


def test_a_film_is_scored_beside_centre_and_chance() -> None:
    good, bad = np.zeros((2, 40, 40), np.float32)
    good[5, 5], bad[30, 30] = 1.0, 1.0
    region = np.zeros((40, 40), bool)
    region[0:10, 0:20] = True
    scored = point({"good": good, "bad": bad}, region)
    assert scored == pytest.approx({"good": 1.0, "bad": 0.0, "centre": 0.0, "random place": 200 / 1600})
    assert point({"good": good}, np.roll(region, (15, 15), (0, 1)))["centre"] == 1.0
