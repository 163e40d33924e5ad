"""preprocess: equal to open_clip on 8-bit films, windowed (never clipped) on deeper ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from foundation.errors import FilmUnsupported, InvalidRequest
from foundation.image import MedicalImage, Window
from foundation.preprocess import (
    CT_WINDOW,
    FULL_RANGE_8BIT,
    InputContract,
    fit_window,
    normalise,
    preprocess,
    render,
    to_8bit,
)

PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
SQUARE = InputContract(size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

OpenClip = Callable[[InputContract, Image.Image], npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def open_clip_transform() -> OpenClip:
    """open_clip's own inference transform, as the slower truth."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    def transform(contract: InputContract, film: Image.Image) -> npt.NDArray[np.float32]:
        config = PreprocessCfg(
            size=contract.size,
            mean=contract.mean,
            std=contract.std,
            interpolation=contract.interpolation,
            resize_mode=contract.resize_mode,
            fill_color=contract.fill_color,
        )
        return np.asarray(image_transform_v2(config, is_train=False)(film).numpy())

    return transform


@pytest.mark.parametrize("shape", [(40, 64), (65, 33), (32, 32), (7, 90), (300, 251)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["squash", "shortest", "longest"])
def test_equals_open_clip_on_8_bit_films(
    open_clip_transform: OpenClip, shape: tuple[int, int], mode: str, interpolation: str, resize_mode: str
) -> None:
    depth = (3,) if mode == "RGB" else ()
    film = np.random.default_rng(7).integers(0, 256, (*shape, *depth), dtype=np.uint8)
    contract = InputContract.from_open_clip(
        {"interpolation": interpolation, "resize_mode": resize_mode, "mean": [0.4, 0.5, 0.6]}, 32
    )
    ours = preprocess(MedicalImage(pixels=film[None]), contract)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, open_clip_transform(contract, Image.fromarray(film)))


def test_fill_color_equals_open_clip(open_clip_transform: OpenClip) -> None:
    film = np.full((8, 32), 200, dtype=np.uint8)
    contract = InputContract(16, PLAIN["mean"], PLAIN["std"], resize_mode="longest", fill_color=90)
    ours = preprocess(MedicalImage(pixels=film[None]), contract)
    np.testing.assert_array_equal(ours, open_clip_transform(contract, Image.fromarray(film)))
    assert render(MedicalImage(pixels=film[None]), contract)[0, 0, 0] == 90


def test_missing_keys_mean_what_open_clip_means() -> None:
    from open_clip.transform import PreprocessCfg

    contract, theirs = InputContract.from_open_clip({}, 224), PreprocessCfg()
    assert (contract.mean, contract.std) == (theirs.mean, theirs.std)
    assert (contract.interpolation, contract.resize_mode) == (theirs.interpolation, theirs.resize_mode)


@pytest.mark.parametrize(
    "config", [{"resize_mod": "squash"}, {"resize_mode": "stretch"}, {"interpolation": "cubic"}, {"mode": "L"}]
)
def test_unknown_options_are_named(config: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=str(next(iter(config)))):
        InputContract.from_open_clip(config, 224)


def test_preprocess_is_normalised_render() -> None:
    image = MedicalImage(pixels=np.random.default_rng(0).integers(0, 4096, (1, 20, 30)).astype(np.uint16))
    film = render(image, SQUARE)
    assert film.shape == (16, 16, 3)
    assert film.dtype == np.uint8
    np.testing.assert_array_equal(preprocess(image, SQUARE), normalise(film, SQUARE))


def test_explicit_window_wins_over_presets() -> None:
    ramp = np.arange(-1000, 1000, dtype=np.int16).reshape(1, 40, 50)
    image = MedicalImage(pixels=ramp, modality="CT", windows=(Window(0.0, 100.0),))
    assert fit_window(image) == Window(0.0, 100.0)
    shown = to_8bit(image, window=Window(center=-600.0, width=200.0))
    assert shown[ramp[0] <= -700].max() == 0
    assert shown[ramp[0] >= -500].min() == 255
    assert shown[ramp[0] == -600][0] == 128


def test_ct_without_presets_gets_the_soft_tissue_window() -> None:
    ct = MedicalImage(pixels=np.zeros((3, 4, 4), dtype=np.int16), modality="CT")
    assert fit_window(ct) == CT_WINDOW


@pytest.mark.parametrize("depth_bits", [12, 16])
def test_deep_films_are_windowed_not_clipped(depth_bits: int) -> None:
    """A 16-bit film whose values all lie above 255 must keep its contrast."""
    top = 2**depth_bits - 1
    ramp = np.linspace(1000, top, 32 * 32).astype(np.uint16).reshape(1, 32, 32)
    shown = to_8bit(MedicalImage(pixels=ramp, value_range=(0.0, float(top))))
    assert len(np.unique(shown)) > 240
    assert np.all(np.diff(shown.ravel().astype(int)) >= 0)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_table_path_equals_direct_path(dtype: type) -> None:
    """Integers of two bytes or fewer go through a table; the others are computed; both must agree."""
    values = np.random.default_rng(3).integers(0, 3000, (1, 16, 16))
    window = Window(center=1000.3, width=777.7)
    direct = to_8bit(MedicalImage(pixels=values.astype(np.float32)), window=window)
    np.testing.assert_array_equal(to_8bit(MedicalImage(pixels=values.astype(dtype)), window=window), direct)


def test_eight_bit_film_is_untouched_unless_mr_or_nifti() -> None:
    dim = np.random.default_rng(1).integers(10, 60, (1, 16, 16), dtype=np.uint8)
    assert fit_window(MedicalImage(pixels=dim)) == FULL_RANGE_8BIT
    np.testing.assert_array_equal(to_8bit(MedicalImage(pixels=dim)), dim[0])
    for stretched in (MedicalImage(pixels=dim, modality="MR"), MedicalImage(pixels=dim, source_format="nifti")):
        assert to_8bit(stretched).max() == 255


def test_middle_slice_by_default_and_refusal_outside() -> None:
    volume = MedicalImage(pixels=np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((5, 8, 8), dtype=np.uint8))
    assert to_8bit(volume).max() == 2
    assert to_8bit(volume, slice_index=4).max() == 4
    for outside in (-1, 5):
        with pytest.raises(InvalidRequest, match="slices 0 to 4"):
            to_8bit(volume, slice_index=outside)


def test_colour_stays_colour_and_takes_no_window() -> None:
    red = np.zeros((1, 8, 8, 3), dtype=np.uint16)
    red[..., 0] = 65535
    image = MedicalImage(pixels=red, value_range=(0.0, 65535.0))
    assert render(image, SQUARE)[0, 0].tolist() == [255, 0, 0]
    with pytest.raises(InvalidRequest, match="colour"):
        render(image, SQUARE, window=Window(0.0, 1.0))


def test_no_data_is_black_and_flat_slices_do_not_fail() -> None:
    volume = np.full((1, 4, 4), np.nan, dtype=np.float32)
    assert to_8bit(MedicalImage(pixels=volume)).max() == 0
    volume[0, 0, 0], volume[0, 1, 1] = 1.0, np.inf
    assert to_8bit(MedicalImage(pixels=volume))[0, 0] == 0
    assert to_8bit(MedicalImage(pixels=np.full((1, 4, 4), 700, dtype=np.int16))).max() == 0


def test_window_functions_follow_dicom() -> None:
    """Reference values by the formulas of PS3.3 C.11.2.1.2.1 and C.11.2.1.3.1."""
    values = np.array([0.0, 50.0, 99.0, 100.0])
    linear = Window(50.0, 100.0, function="linear").brightness(values)
    np.testing.assert_allclose(linear, (values - 49.5) / 99.0 + 0.5)
    sigmoid = Window(50.0, 100.0, function="sigmoid").brightness(values)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-4 * (values - 50) / 100)))
    threshold = Window(50.0, 1.0, function="linear").brightness(values)
    np.testing.assert_array_equal(threshold, [0, 1, 1, 1])


def test_window_table_looks_values_up() -> None:
    window = Window(center=101.5, width=3.0, function="table", table=(10, 20, 30))  # first entry at 100
    np.testing.assert_allclose(window.brightness(np.array([0.0, 100, 101, 102, 500])), [0, 0, 0.5, 1, 1])


def test_a_strip_is_refused_before_it_is_blown_up() -> None:
    contract = InputContract(224, PLAIN["mean"], PLAIN["std"], resize_mode="shortest")
    with pytest.raises(FilmUnsupported, match="strip"):
        render(MedicalImage(pixels=np.zeros((1, 1, 10_000), dtype=np.uint8)), contract)
