"""A volume's masks lie where the volume lies: every slice, window and affine is where it was."""

from __future__ import annotations

import io
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from adapters.card import AdapterCard, BaseRecord
from adapters.tasks.segmentation import SegmentationHead, SegmentationOutput, Segmenter
from adapters.tasks.volume import VolumePlan, VolumeSegmentation, render_slice, segment_volume, volume_window
from foundation.errors import InvalidRequest
from foundation.image import MedicalImage
from foundation.preprocess import InputContract, render
from foundation.readers import read_film

CONTRACT = InputContract(32, (0.5,) * 3, (0.5,) * 3, resize_mode="squash")


class Bright(SegmentationHead):
    """Draws what is bright in the middle channel, as `glow`, and in the first one, as `below`."""

    def __init__(self) -> None:
        super().__init__(2, 4, (4,))

    def forward(self, features: object, pixels: torch.Tensor, *_: object) -> SegmentationOutput:
        masks = torch.nn.functional.avg_pool2d(20 * pixels[:, [1, 0]], 2)
        return SegmentationOutput(masks, torch.where(masks.amax(dim=(2, 3)) > 0, 9.0, -9.0), masks)


def segmenter(context: int = 1, parts: int = 0) -> Segmenter:
    card = AdapterCard("x", "segmentation", ("glow", "below"), BaseRecord("b", "f"), 1)
    return Segmenter(card, Bright(), {"both": ("glow", "below")}, parts, context)


def encode(pixels: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(levels=())


def block(shape: tuple[int, int, int] = (6, 64, 64)) -> MedicalImage:
    """(Z, H, W) with a bright block in slices 2 and 3, whose borders are those of the head's pixels."""
    pixels = np.zeros(shape, np.int16)
    pixels[2:4, 16:48, 12:32] = 1000
    return MedicalImage(pixels, spacing_mm=(5.0, 1.5, 2.0), value_range=(0, 1000), source_format="nifti")


def test_each_slice_is_answered_in_its_own_place() -> None:
    image = block()
    result = segment_volume(segmenter(), encode, image, CONTRACT, VolumePlan(batch_size=4))
    truth = image.pixels > 500
    assert result.mask("glow").shape == image.pixels.shape
    assert (result.mask("glow") != truth).mean() < 0.01
    assert [slice_.any() for slice_ in result.mask("glow")] == [False, False, True, True, False, False]
    # the first channel is the slice below: what it shows is answered one slice higher
    assert [slice_.any() for slice_ in result.mask("below")] == [False, False, False, True, True, False]
    assert result.volume_ml("glow") == pytest.approx(truth.sum() * 15 / 1000, rel=0.05)
    assert result.presence.shape == (2, 6)


def test_without_context_a_slice_is_shown_as_a_film_is() -> None:
    image = block()
    window = volume_window(image)
    alone = render_slice(image, CONTRACT, 2, window, context=0)
    assert np.array_equal(alone, render(image, CONTRACT, slice_index=2, window=window))
    assert not np.array_equal(render_slice(image, CONTRACT, 2, window)[..., 0], alone[..., 0])  # the slice below is dark
    assert np.array_equal(render_slice(image, CONTRACT, 0, window)[..., 0], render_slice(image, CONTRACT, 0, window)[..., 1])
    result = segment_volume(segmenter(context=0), encode, image, CONTRACT)
    assert np.array_equal(result.mask("glow"), result.mask("below"))


@pytest.mark.parametrize("contract", [CONTRACT, InputContract(32, (0.5,) * 3, (0.5,) * 3, resize_mode="longest")])
def test_many_windows_draw_finer_borders(contract: InputContract) -> None:
    image = block((6, 96, 96))
    image.pixels[2:4, 70:73, 20:60] = 1000  # type: ignore[index]
    truth = image.pixels > 500
    one, many = (
        segment_volume(segmenter(), encode, image, contract, VolumePlan(windows=count)).mask("glow") for count in (1, 5)
    )
    assert (many != truth).sum() < (one != truth).sum() / 2


def test_a_lone_spot_is_dropped_where_a_class_has_one_part() -> None:
    image = block()
    image.pixels[5, 4:12, 36:44] = 1000  # type: ignore[index]
    assert segment_volume(segmenter(), encode, image, CONTRACT).mask("glow")[5].any()
    assert not segment_volume(segmenter(parts=1), encode, image, CONTRACT).mask("glow")[5].any()


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_nifti_lies_where_the_volume_lay(codes: str) -> None:
    """However the file stores its voxels, the mask saved with the result's affine covers the same places of the patient."""
    data = np.zeros((64, 64, 10), np.int16)
    data[12:28, 16:48, 3:5] = 1000
    affine = np.array([[-2.0, 0.1, 0, 30], [0, 1.5, 0.2, -20], [0.1, 0, 5, 7], [0, 0, 0, 1]])
    stored = nib.Nifti1Image(data, affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes)))
    )
    image = read_film(stored.to_bytes())
    result = segment_volume(segmenter(), encode, image, CONTRACT)
    assert result.affine is not None
    saved = nib.Nifti1Image.from_bytes(nib.Nifti1Image(result.voxels("glow").astype(np.uint8), result.affine).to_bytes())

    def middle(picture: nib.Nifti1Image, voxels: np.ndarray) -> np.ndarray:
        return nib.affines.apply_affine(picture.affine, np.argwhere(voxels)).mean(axis=0)

    ours, truth = (middle(picture, np.asarray(picture.dataobj) > 0) for picture in (saved, stored))
    np.testing.assert_allclose(ours, truth, atol=0.8)
    # and voxel for voxel, once the file is turned as the reader turns it
    turned = stored.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(stored.affine), nib.io_orientation(saved.affine))
    )
    np.testing.assert_allclose(turned.affine, saved.affine, atol=1e-5)
    assert ((np.asarray(turned.dataobj) > 500) != (np.asarray(saved.dataobj) > 0)).mean() < 0.02


def test_odd_requests_are_refused() -> None:
    result = VolumeSegmentation(("a",), np.zeros((1, 2, 3, 4), bool), np.zeros((1, 2)), None, None)
    assert result.volume_ml("a") is None
    with pytest.raises(InvalidRequest, match="no class 'b'"):
        result.mask("b")
    with pytest.raises(InvalidRequest, match="overlap"):
        VolumePlan(overlap=1.0)
    with pytest.raises(InvalidRequest, match="colour"):
        volume_window(MedicalImage(np.zeros((2, 4, 4, 3), np.uint8)))
    with pytest.raises(InvalidRequest, match="no class 'heart'"):
        segment_volume(segmenter(), encode, block(), CONTRACT).mask("heart")


def test_nothing_is_read_from_a_file_twice() -> None:
    """`read_film` of what nibabel writes keeps the spacing that volumes are measured by."""
    buffer = io.BytesIO(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.diag([2.0, 1.5, 5.0, 1.0])).to_bytes())
    assert read_film(buffer.getvalue()).spacing_mm == pytest.approx((5.0, 1.5, 2.0))
