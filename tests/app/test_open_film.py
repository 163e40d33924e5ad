"""A film on the page is the model's input to the pixel: every slice, every window, as the server renders it."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from app.examples import EXAMPLES
from app.figure import figure_html
from app.film import OpenFilm
from foundation.errors import FilmUnsupported
from foundation.preprocess import InputContract, render
from foundation.readers import read_film
from serving.fake import CONTRACT, fake_film
from serving.messages import RawFilm
from tests.serving.live_api import color_picture, dicom_ct_slice, nifti_volume, png_film

SHORTEST = InputContract(size=64, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="shortest")


def shown_pixels(html: str) -> np.ndarray:
    """The first picture of a figure, decoded."""
    data = html.partition("base64,")[2].partition('"')[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def as_served(film: OpenFilm) -> np.ndarray:
    """What the server makes of exactly what the client sends."""
    sent = film.picture()
    return fake_film(RawFilm(sent.data, sent.slice_index, sent.window)).pixels


@pytest.mark.parametrize("contract", [CONTRACT, SHORTEST])
def test_each_slice_of_a_volume_is_what_the_model_sees(contract: InputContract) -> None:
    data = nifti_volume(6)
    film = OpenFilm.read(data, "volume.nii")
    pictures = []
    for index in range(6):
        shown = shown_pixels(figure_html(film.at(slice_index=index, window=None), contract))
        np.testing.assert_array_equal(shown, render(read_film(data), contract, slice_index=index))
        pictures.append(shown.tobytes())
    assert len(set(pictures)) == 6


def test_page_and_server_show_the_same_for_every_window_of_a_ct() -> None:
    film = OpenFilm.read(dicom_ct_slice(), "slice.dcm")
    windows = film.windows()
    assert next(iter(windows.items())) == ("CT soft tissue 40 / 400 (default)", None)
    assert "lung -600 / 1500" in windows
    pictures = set()
    for window in windows.values():
        shown = film.at(slice_index=None, window=window)
        np.testing.assert_array_equal(shown.pixels(CONTRACT), as_served(shown))
        pictures.add(shown.pixels(CONTRACT).tobytes())
    assert len(pictures) == len(windows)


def test_page_and_server_show_the_same_without_a_choice() -> None:
    for data in (png_film(), color_picture(), nifti_volume(5)):
        film = OpenFilm.read(data, "film")
        np.testing.assert_array_equal(film.pixels(CONTRACT), as_served(film))


def test_a_plain_film_offers_no_windows_to_choose_from() -> None:
    assert len(OpenFilm.read(png_film(), "film.png").windows()) == 1
    assert OpenFilm.read(color_picture(), "photo.png").windows() == {}


def test_another_slice_or_window_is_another_view() -> None:
    film = OpenFilm.read(nifti_volume(5), "volume.nii")
    assert film.view == film.at(slice_index=2, window=None).view  # the middle one is the default
    assert film.view != film.at(slice_index=3, window=None).view


def test_a_name_is_escaped_in_the_caption() -> None:
    shown = figure_html(OpenFilm.read(png_film(), '<img src=x onerror="x">.png'), CONTRACT)
    assert "<img src=x" not in shown
    assert "&lt;img src=x" in shown


def test_what_is_no_film_is_refused_with_a_sentence() -> None:
    with pytest.raises(FilmUnsupported, match="known film format"):
        OpenFilm.read(b"plainly not a film", "note.txt")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: one.name)
def test_examples_hold_what_they_are_named_for(example: object) -> None:
    film = example.film(CONTRACT.size)  # type: ignore[attr-defined]
    assert film.truth is not None
    assert len(film.truth) == (0 if film.name == "Normal" else 1)
    word = {"Enlarged heart": "cardiomegaly"}.get(film.name, film.name.lower())
    assert film.name == "Normal" or word in film.truth[0]
    np.testing.assert_array_equal(film.pixels(CONTRACT), as_served(film))
