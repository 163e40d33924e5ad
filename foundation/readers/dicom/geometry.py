"""Where a DICOM picture lies in the patient: spacing, affine, and the order of frames (PS3.3 C.7.6.2, C.7.6.16).

DICOM's patient frame is LPS (x to the left, y to the back); ours is RAS, so the first two axes change sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from foundation.readers.dicom.values import frame_group, number, numbers

Vector = npt.NDArray[np.float64]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Placement:
    """A picture plane in LPS millimetres: unit vectors along its rows and columns, and its first pixel's centre."""

    along_row: Vector
    along_column: Vector
    origin: Vector

    @property
    def normal(self) -> Vector:
        return np.asarray(np.cross(self.along_row, self.along_column))

    @property
    def depth_mm(self) -> float:
        return float(self.normal @ self.origin)

    def is_parallel(self, other: Placement) -> bool:
        return bool(
            np.allclose(self.along_row, other.along_row, atol=1e-3)
            and np.allclose(self.along_column, other.along_column, atol=1e-3)
        )


def placement(dataset: Dataset, frame: int = 0) -> Placement | None:
    """The plane of a frame; None where the file does not say or says nonsense."""
    orientation_holder = frame_group(dataset, frame, "PlaneOrientationSequence") or dataset
    position_holder = frame_group(dataset, frame, "PlanePositionSequence") or dataset
    orientation = numbers(orientation_holder, "ImageOrientationPatient")
    position = numbers(position_holder, "ImagePositionPatient")
    if len(orientation) != 6 or len(position) != 3:
        return None
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(row @ column) > 0.1:
        return None
    return Placement(row / lengths[0], column / lengths[1], np.array(position))


def pixel_spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Millimetres between neighbouring (rows, columns): in the patient, or on the detector for a projection."""
    for holder, keyword in (
        (frame_group(dataset, 0, "PixelMeasuresSequence") or dataset, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "NominalScannedPixelSpacing"),
    ):
        found = numbers(holder, keyword)
        if len(found) == 2 and min(found) > 0:
            return found[0], found[1]
    return None


def stated_slice_spacing(dataset: Dataset) -> float:
    """Millimetres between slices as the file states them; 0.0 where it does not."""
    holder = frame_group(dataset, 0, "PixelMeasuresSequence") or dataset
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        found = number(holder, keyword)
        if found is not None and found > 0:
            return found
    return 0.0


def affine(first: Placement, spacing: tuple[float, float], step: Vector) -> npt.NDArray[np.float64]:
    """(4, 4) voxel index (column, row, slice) -> RAS mm; `step` leads from one slice to the next, in LPS mm."""
    row_mm, column_mm = spacing
    matrix = np.eye(4)
    matrix[:3, 0] = first.along_row * column_mm
    matrix[:3, 1] = first.along_column * row_mm
    matrix[:3, 2] = step
    matrix[:3, 3] = first.origin
    return np.asarray(LPS_TO_RAS @ matrix)


@dataclass(frozen=True)
class Stack:
    """Parallel planes in order of depth: their indices in that order, the mean step, and whether the steps are even."""

    order: tuple[int, ...]
    first: Placement
    step: Vector
    is_even: bool


def sort_planes(planes: list[Placement | None]) -> Stack | None:
    """None unless all planes are known, parallel and at different depths."""
    known = [plane for plane in planes if plane is not None]
    if len(known) != len(planes) or len(known) < 2 or not all(plane.is_parallel(known[0]) for plane in known):
        return None
    normal = known[0].normal
    depths = np.array([float(normal @ plane.origin) for plane in known])
    order = np.argsort(depths, kind="stable")
    gaps = np.diff(depths[order])
    if gaps.min() < 1e-3:
        return None
    first, last = known[order[0]], known[order[-1]]
    step = (last.origin - first.origin) / (len(known) - 1)
    is_even = bool(gaps.max() - gaps.min() <= max(0.05, 0.1 * float(np.median(gaps))))
    return Stack(tuple(int(index) for index in order), first, step, is_even)
