"""NIfTI: turned to radiological view with a true affine; sizes checked before the voxels are touched."""

from __future__ import annotations

import gzip
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from film_factory import nifti_film

from foundation.errors import FilmTooLarge, FilmUnreadable, FilmUnsupported
from foundation.readers import Limits, read_film

RAS_BLOCK = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)  # (x to the right, y to the front, z to the head)
SPACING = np.array([0.5, 1.5, 4.0])


def _stored_as(axes: tuple[int, ...], flips: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """RAS_BLOCK stored with its axes permuted and flipped, and the affine that says so."""
    ornt = np.array([[axis, -1 if flip else 1] for axis, flip in zip(axes, flips, strict=True)], dtype=float)
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-7.0, 11.0, 13.0)
    image = nib.Nifti1Image(RAS_BLOCK, affine).as_reoriented(ornt)
    return np.asanyarray(image.dataobj), image.affine


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product([False, True], repeat=3)))
def test_every_storage_order_gives_the_same_radiological_view(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    voxels, affine = _stored_as(axes, flips)
    image = read_film(nifti_film(voxels, affine))
    expected = RAS_BLOCK[::-1, ::-1, :].transpose(2, 1, 0)  # slice: feet to head, row: front to back, column: R to L
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.spacing_mm == pytest.approx((4.0, 1.5, 0.5))
    assert image.affine is not None
    for column, row, slice_ in ((0, 0, 0), (2, 1, 3)):
        x, y, z = 2 - column, 3 - row, slice_  # the same voxel in RAS_BLOCK
        truth = np.array([x, y, z]) * SPACING + (-7.0, 11.0, 13.0)
        np.testing.assert_allclose((image.affine @ [column, row, slice_, 1])[:3], truth, atol=1e-5)
        assert image.pixels[slice_, row, column] == RAS_BLOCK[x, y, z]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_kinds_types_and_gzip(kind: type, gz: bool, dtype: type) -> None:
    image = read_film(nifti_film(RAS_BLOCK.astype(dtype), kind=kind, gz=gz))
    assert image.pixels.dtype == dtype
    assert image.pixels.shape == (5, 4, 3)
    assert image.source_format == "nifti"
    np.testing.assert_array_equal(np.sort(image.pixels.ravel()), np.arange(60))


def test_scale_is_applied() -> None:
    source = nib.Nifti1Image(RAS_BLOCK, np.eye(4))
    source.header.set_slope_inter(0.5, -10)
    data = bytearray(nifti_film(RAS_BLOCK))
    data[112:120] = np.array([0.5, -10], dtype="<f4").tobytes()
    image = read_film(bytes(data))
    assert image.pixels.dtype == np.float32
    assert (image.pixels.min(), image.pixels.max()) == (-10.0, 19.5)


def test_two_dimensions_are_one_slice_and_four_are_refused() -> None:
    assert read_film(nifti_film(RAS_BLOCK[:, :, 0])).pixels.shape == (1, 4, 3)
    assert read_film(nifti_film(RAS_BLOCK[..., None])).pixels.shape == (5, 4, 3)
    with pytest.raises(FilmUnsupported, match="one volume"):
        read_film(nifti_film(np.zeros((3, 4, 5, 6), dtype=np.int16)))


def test_colour_voxels() -> None:
    voxels = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels["R"], voxels["B"] = 200, RAS_BLOCK
    image = read_film(nifti_film(voxels))
    assert image.pixels.shape == (5, 4, 3, 3)
    assert set(image.pixels[..., 0].ravel()) == {200}
    np.testing.assert_array_equal(image.pixels[..., 2], RAS_BLOCK[::-1, ::-1].transpose(2, 1, 0))


def test_a_lying_header_is_refused_before_reading() -> None:
    data = bytearray(nifti_film(RAS_BLOCK))
    data[40:48] = np.array([3, 32000, 32000, 32000], dtype="<i2").tobytes()
    with pytest.raises(FilmTooLarge):
        read_film(bytes(data))
    data[40:48] = np.array([3, 30, 40, 50], dtype="<i2").tobytes()
    with pytest.raises(FilmUnreadable, match="fewer voxels"):
        read_film(bytes(data))


def test_gzip_is_capped_and_checked() -> None:
    honest = nifti_film(RAS_BLOCK)
    with pytest.raises(FilmTooLarge):
        read_film(gzip.compress(honest + b"\0" * 20_000_000))
    with pytest.raises(FilmUnreadable):
        read_film(gzip.compress(honest)[:-20])
    with pytest.raises(FilmUnsupported, match="no NIfTI"):
        read_film(gzip.compress(b"something else" * 100))
    with pytest.raises(FilmTooLarge):
        read_film(gzip.compress(honest), Limits(max_inflated_bytes=50))


def test_nonsense_orientation_and_pairs_are_refused() -> None:
    data = bytearray(nifti_film(RAS_BLOCK))
    data[280:328] = b"\0" * 48  # an sform of zeros
    with pytest.raises(FilmUnreadable, match="orientation"):
        read_film(bytes(data))
    pair = bytearray(nifti_film(RAS_BLOCK))
    pair[344:348] = b"ni1\0"
    with pytest.raises(FilmUnsupported, match="pair"):
        read_film(bytes(pair))
