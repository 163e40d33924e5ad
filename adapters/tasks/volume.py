"""A volume segmented slice by slice, and put back where it was: masks in the volume's own voxels, with its affine.

    slices z-1, z, z+1 -> the three channels of one picture -> windows of S x S, Gaussian-weighted -> masks (K, Z, H, W)

A head that never saw neighbours (`Segmenter.context` 0) is shown each slice alone, as it is shown films. All slices go
through one grey-level window, so that tissue looks the same from end to end. Windows are MONAI's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.tasks.parts import largest_parts
from adapters.tasks.segmentation import HasLevels, Segmenter
from foundation.errors import InvalidRequest
from foundation.image import MedicalImage, Window
from foundation.preprocess import InputContract, fit_window, normalise, render, to_8bit, to_film

Mask = npt.NDArray[np.bool_]
Encode = Callable[[Tensor], HasLevels]  # normalised pixels (B, 3, S, S) -> features


@dataclass(frozen=True)
class VolumePlan:
    """How slices are looked at. windows: along each side of a slice; 1 shows it whole, more show it larger.

    overlap: of neighbouring windows, as a share of one; batch_size: slices at a time.
    """

    windows: int = 1
    overlap: float = 0.5
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.windows < 1 or self.batch_size < 1 or not 0.0 <= self.overlap < 1.0:
            raise InvalidRequest(
                "Give at least one window and one slice a batch, and an overlap from 0 to below 1.", param="plan"
            )

    def enlarged(self, contract: InputContract) -> InputContract:
        """The contract of a slice that `windows` windows of the model's size cover along each side."""
        return replace(contract, size=round(contract.size * (1 + (self.windows - 1) * (1 - self.overlap))))


@dataclass(frozen=True, eq=False)
class VolumeSegmentation:
    """masks (K, Z, H, W) over the volume's voxels, and presence (K, Z) slice by slice.

    affine (4, 4): voxel (column, row, slice) to patient RAS millimetres, the volume's own; None where it has none.
    """

    labels: tuple[str, ...]
    masks: Mask
    presence: npt.NDArray[np.float64]
    spacing_mm: tuple[float, float, float] | None
    affine: npt.NDArray[np.float64] | None
    unions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def mask(self, label: str) -> Mask:
        """(Z, H, W) of a class or a union."""
        if label in self.unions:
            return np.asarray(np.any([self.mask(part) for part in self.unions[label]], axis=0))
        if label not in self.labels:
            raise InvalidRequest(f"There is no class {label!r} here; known are {', '.join(self.labels)}.", param="label")
        return np.asarray(self.masks[self.labels.index(label)])

    def voxels(self, label: str) -> Mask:
        """(column, row, slice): the array that `affine` speaks of, as NIfTI stores it."""
        return np.ascontiguousarray(self.mask(label).transpose(2, 1, 0))

    def volume_ml(self, label: str) -> float | None:
        """None where the spacing of voxels is not known."""
        if self.spacing_mm is None or min(self.spacing_mm) <= 0:
            return None
        return float(self.mask(label).sum()) * float(np.prod(self.spacing_mm)) / 1000.0


def segment_volume(
    segmenter: Segmenter,
    encode: Encode,
    image: MedicalImage,
    contract: InputContract,
    plan: VolumePlan | None = None,
    window: Window | None = None,
) -> VolumeSegmentation:
    """Raises InvalidRequest for a colour volume."""
    plan, shown = plan or VolumePlan(), window or volume_window(image)
    larger, (height, width) = plan.enlarged(contract), image.pixels.shape[1:3]
    thresholds = np.array(segmenter.card.thresholds or [0.5] * len(segmenter.card.labels))
    masks = np.zeros((len(thresholds), image.slices, height, width), bool)
    presence = np.zeros((len(thresholds), image.slices))
    for start in range(0, image.slices, plan.batch_size):
        places = range(start, min(start + plan.batch_size, image.slices))
        slices = [normalise(render_slice(image, larger, place, shown, segmenter.context), larger) for place in places]
        chances, there = _look(segmenter, encode, torch.from_numpy(np.stack(slices)), contract.size, plan)
        for place, maps in zip(places, chances, strict=True):
            masks[:, place] = [to_film(one, height, width, larger) >= 0.5 for one in maps]
        presence[:, start : places.stop] = there.T
    masks &= (presence >= thresholds[:, None])[:, :, None, None]
    masks = np.stack([largest_parts(mask, segmenter.parts) for mask in masks])
    return VolumeSegmentation(segmenter.card.labels, masks, presence, image.spacing_mm, image.affine, segmenter.unions)


def volume_window(image: MedicalImage) -> Window:
    """One window for all slices: as `fit_window` chooses, percentiles being taken over the whole volume."""
    if image.is_color:
        raise InvalidRequest("A colour volume cannot be segmented; send grey slices.", param="image")
    flat = replace(image, pixels=image.pixels.reshape(1, -1, image.pixels.shape[-1]))
    return fit_window(flat)


def render_slice(
    image: MedicalImage, contract: InputContract, index: int, window: Window, context: int = 1
) -> npt.NDArray[np.uint8]:
    """(S, S, 3): the slice with the one below and the one above it as channels; at the ends the slice stands in for both.

    With context 0 the slice alone, as a film is shown.
    """
    neighbours = [min(max(index + step * context, 0), image.slices - 1) for step in (-1, 0, 1)]
    channels = np.stack([to_8bit(image, slice_index=place, window=window) for place in neighbours], axis=-1)
    return render(MedicalImage(channels[None]), contract)


@torch.no_grad()
def _look(
    segmenter: Segmenter, encode: Encode, slices: Tensor, size: int, plan: VolumePlan
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Slices (B, 3, S', S') -> chances (B, K, S', S'), and presence (B, K): that of the window that is surest."""
    from monai.inferers import SlidingWindowInferer

    device = next(segmenter.head.parameters()).device

    def predict(windows: Tensor) -> Tensor:
        output = segmenter.head(encode(windows), windows)
        chances = F.interpolate(output.masks.float().sigmoid(), windows.shape[-2:], mode="bilinear", align_corners=False)
        there = output.presence.float().sigmoid()[:, :, None, None].expand_as(chances)
        return torch.cat([chances * (there >= 0.5), there], dim=1)

    windows = SlidingWindowInferer((size, size), sw_batch_size=plan.batch_size, overlap=plan.overlap, mode="gaussian")
    both = windows(slices.to(device), predict)
    assert isinstance(both, Tensor)
    chances, there = both.float().cpu().chunk(2, dim=1)
    return chances.numpy(), there.amax(dim=(2, 3)).double().numpy()
