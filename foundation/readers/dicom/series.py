"""One DICOM file -> a slice (picture and place); many slices of one series -> one volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset

from foundation.errors import FilmUnreadable, FilmUnsupported
from foundation.image import MedicalImage
from foundation.readers.dicom import geometry, vocabulary
from foundation.readers.dicom.parse import parse
from foundation.readers.dicom.photometry import resolve
from foundation.readers.dicom.pixels import decode, read_header
from foundation.readers.dicom.values import number, word
from foundation.readers.limits import Limits

UNEVEN = "slices are not evenly spaced: some may be missing"


@dataclass(frozen=True)
class Slice:
    """One file of a series. `series` and `number` only sort slices; they never leave this folder."""

    image: MedicalImage
    series: str
    number: float | None
    place: geometry.Placement | None


def read_slice(data: bytes, limits: Limits) -> Slice:
    dataset = parse(data, limits)
    header = read_header(dataset, limits)
    resolved = resolve(dataset, header, decode(dataset, header))
    image = MedicalImage(
        pixels=resolved.pixels,
        modality=vocabulary.modality(dataset),
        body_part=vocabulary.body_part(dataset),
        view=vocabulary.view(dataset),
        windows=resolved.windows,
        value_range=resolved.value_range,
        source_format="dicom",
        notes=resolved.notes,
    )
    image = _place_frames(image, dataset)
    return Slice(image, word(dataset, "SeriesInstanceUID"), number(dataset, "InstanceNumber"), geometry.placement(dataset))


def stack_series(files: Iterable[bytes], limits: Limits) -> MedicalImage:
    """DICOM files in any order -> one volume, sorted along the slice normal (for axial slices: from feet to head)."""
    slices: list[Slice] = []
    total_bytes = 0
    for data in files:
        slices.append(read_slice(data, limits))
        total_bytes += slices[-1].image.pixels.nbytes
        limits.check_inflated(total_bytes)
        limits.check_shape(len(slices), 1, 1, bytes_per_pixel=1)
    if not slices:
        raise FilmUnsupported("There is no DICOM film in the folder.")
    if len(slices) == 1:
        return slices[0].image
    _require_one_series(slices)
    return _stack(slices)


def _require_one_series(slices: list[Slice]) -> None:
    if len({item.series for item in slices}) > 1:
        raise FilmUnsupported("The folder holds more than one DICOM series; send one series at a time.")
    if any(item.image.is_volume for item in slices):
        raise FilmUnsupported("The folder mixes multi-frame files; send one multi-frame file at a time.")
    if len({item.image.pixels.shape for item in slices}) > 1:
        raise FilmUnsupported("The slices of the series differ in size; send slices of one size.")


def _stack(slices: list[Slice]) -> MedicalImage:
    planes = geometry.sort_planes([item.place for item in slices])
    if planes is None:
        return _stack_by_number(slices)
    ordered = [slices[index] for index in planes.order]
    middle = ordered[len(ordered) // 2].image
    pixels = np.concatenate([item.image.pixels for item in ordered])
    in_plane = middle.spacing_mm[1:] if middle.spacing_mm else None
    return replace(
        middle,
        pixels=pixels,
        value_range=_joint_range(ordered),
        spacing_mm=(float(np.linalg.norm(planes.step)), *in_plane) if in_plane else None,
        affine=geometry.affine(planes.first, in_plane, planes.step) if in_plane else None,
        notes=middle.notes if planes.is_even else (*middle.notes, UNEVEN),
    )


def _stack_by_number(slices: list[Slice]) -> MedicalImage:
    """Without usable positions the slices' numbers give the order, if they are all there and different."""
    numbers = [item.number for item in slices if item.number is not None]
    if len(set(numbers)) != len(slices):
        raise FilmUnreadable(
            "The slices of the series state neither different positions nor different numbers, so they cannot be "
            "ordered; send a series of parallel slices."
        )
    ordered = sorted(slices, key=lambda item: item.number or 0.0)
    middle = ordered[len(ordered) // 2].image
    pixels = np.concatenate([item.image.pixels for item in ordered])
    note = "slices ordered by their number: their positions are unknown or not parallel"
    return replace(middle, pixels=pixels, value_range=_joint_range(ordered), affine=None, notes=(*middle.notes, note))


def _joint_range(slices: list[Slice]) -> tuple[float, float]:
    ranges = [item.image.value_range for item in slices]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _place_frames(image: MedicalImage, dataset: Dataset) -> MedicalImage:
    """Spacing and affine; the frames of a multi-frame file sorted by position where each states its own."""
    in_plane = geometry.pixel_spacing(dataset)
    if in_plane is None:
        return image
    spacing_mm = (geometry.stated_slice_spacing(dataset), *in_plane)
    has_positions = image.is_volume and "PerFrameFunctionalGroupsSequence" in dataset
    planes = [geometry.placement(dataset, frame) for frame in range(image.slices)] if has_positions else []
    stack = geometry.sort_planes(planes)
    if stack is not None:
        return replace(
            image,
            pixels=image.pixels[list(stack.order)],
            spacing_mm=(float(np.linalg.norm(stack.step)), *in_plane),
            affine=geometry.affine(stack.first, in_plane, stack.step),
            notes=image.notes if stack.is_even else (*image.notes, UNEVEN),
        )
    place = geometry.placement(dataset)
    if place is None or image.is_volume:  # which way unplaced frames are stacked would be a guess
        return replace(image, spacing_mm=spacing_mm)
    step = place.normal * (spacing_mm[0] or 1.0)
    return replace(image, spacing_mm=spacing_mm, affine=geometry.affine(place, in_plane, step))
