"""A click on the shown film marks the very place of the film as it was sent, however it was laid into the model's square."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from app import words
from app.film import OpenFilm
from app.marks import Marks, extent, film_place, marks_html, shown_place
from foundation.errors import InvalidRequest
from foundation.preprocess import RESIZE_MODES, InputContract

HEIGHT, WIDTH, SIDE = 120, 80, 64


def contract(mode: str) -> InputContract:
    return InputContract(size=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode=mode)


def film_with_spot(row: int, column: int, radius: int = 4) -> OpenFilm:
    """Black, with one white disc."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    pixels = np.where((y + 0.5 - row) ** 2 + (x + 0.5 - column) ** 2 <= radius**2, np.uint8(255), np.uint8(0))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return OpenFilm.read(file.getvalue(), "spot.png")


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("spot", [(40, 30), (60, 40), (75, 55)])
def test_a_click_on_a_spot_is_where_the_spot_is(mode: str, spot: tuple[int, int]) -> None:
    film = film_with_spot(*spot)
    shown = film.pixels(contract(mode))[..., 0].astype(float)
    y, x = (float((shown * axis).sum() / shown.sum() + 0.5) / SIDE for axis in np.mgrid[:SIDE, :SIDE])
    assert film_place(x, y, film, contract(mode)) == pytest.approx(spot, abs=1.0)
    assert shown_place(*spot, film, contract(mode)) == pytest.approx((x, y), abs=1.0 / SIDE)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_what_is_drawn_is_where_it_was_clicked(mode: str) -> None:
    film = film_with_spot(60, 40)
    place = film_place(0.5, 0.375, film, contract(mode))
    drawn = marks_html(Marks().click("inside", *place), film, contract(mode))
    assert re.findall(r"(left|top):([\d.]+)%", drawn) == [("left", "50.00"), ("top", "37.50")]


def test_an_empty_border_cannot_be_marked() -> None:
    film = film_with_spot(60, 40)
    assert extent(film) == (HEIGHT, WIDTH)
    with pytest.raises(InvalidRequest, match="empty border"):
        film_place(0.02, 0.5, film, contract("longest"))
    film_place(0.02, 0.5, film, contract("squash"))


def test_marks_gather_and_two_corners_make_a_box_in_any_order() -> None:
    marks = Marks().click("inside", 10, 20).click("outside", 30, 40).click("box", 90, 70)
    assert marks.corner == (90, 70)
    assert marks.counts == {"inside": 1, "outside": 1, "boxes": 0}
    whole = marks.click("box", 5, 6)
    (box,) = whole.boxes
    assert (box.top, box.left, box.bottom, box.right, whole.corner) == (5, 6, 90, 70, None)
    assert [point.inside for point in whole.points] == [True, False]
    assert marks.click("inside", 1, 1).corner is None
    with pytest.raises(InvalidRequest) as refused:
        marks.click("box", 90.4, 10)
    assert refused.value.message == words.SMALL_BOX
