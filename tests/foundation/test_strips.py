"""Resizing in strips: the same bits as in one go, whoever takes the strips."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from foundation import preprocess, strips
from foundation.image import MedicalImage
from foundation.preprocess import InputContract, render
from foundation.strips import resize_in_strips

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


@pytest.fixture
def helper() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as one:
        yield one


def film(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(301, 257), (64, 400), (5, 900, 3), (333, 222, 3)])
@pytest.mark.parametrize("method", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("strip_pixels", [1, 1000, 1 << 18])
def test_strips_equal_the_whole(
    shape: tuple[int, ...], method: Image.Resampling, strip_pixels: int, helper: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "STRIP_PIXELS", strip_pixels)
    pixels = film(*shape)
    whole = Image.fromarray(pixels).resize((48, 31), method)
    assert np.array_equal(np.asarray(resize_in_strips(pixels, 48, 31, method, helper)), np.asarray(whole))


def test_a_helper_that_never_comes_is_not_waited_for(helper: Executor) -> None:
    free = threading.Event()
    busy = helper.submit(free.wait)
    pixels = film(600, 900)
    resized = resize_in_strips(pixels, 48, 31, BICUBIC, helper)
    assert not busy.done()
    free.set()
    assert np.array_equal(np.asarray(resized), np.asarray(Image.fromarray(pixels).resize((48, 31), BICUBIC)))


@pytest.mark.parametrize("resize_mode", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("shape", [(1300, 1000), (900, 1400, 3), (8000, 200)])
def test_films_are_rendered_alike_with_a_helper(
    resize_mode: str, shape: tuple[int, ...], helper: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def counted(*given: object) -> Image.Image:
        taken.append(1)
        return resize_in_strips(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(preprocess, "resize_in_strips", counted)
    image = MedicalImage(pixels=film(*shape)[None])
    contract = InputContract(64, (0.5,) * 3, (0.25,) * 3, resize_mode=resize_mode, fill_color=9)
    assert np.array_equal(render(image, contract, helper=helper), render(image, contract))
    assert len(taken) == 1
