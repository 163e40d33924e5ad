"""Stored values -> values in physical units in which larger is brighter, and the windows to show them with.

In DICOM's order (PS3.3 C.7.6.3, C.11.1, C.11.2): palette; modality rescale or table; MONOCHROME1 turned round, and each
window with it, so that nothing after this file has to know of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut

from foundation.errors import FilmUnreadable
from foundation.image import Window
from foundation.readers.dicom.pixels import PixelHeader
from foundation.readers.dicom.values import frame_group, number, numbers, word, words
from foundation.readers.dicom.vocabulary import window_name

Pixels = npt.NDArray[np.generic]
VOI_FUNCTIONS = {"": "linear", "LINEAR": "linear", "LINEAR_EXACT": "linear_exact", "SIGMOID": "sigmoid"}


@dataclass(frozen=True)
class Resolved:
    pixels: Pixels
    value_range: tuple[float, float]
    windows: tuple[Window, ...] = ()
    notes: tuple[str, ...] = ()


def resolve(dataset: Dataset, header: PixelHeader, stored: Pixels) -> Resolved:
    """(Z, H, W) or (Z, H, W, 3) stored values -> the same in physical units, photometry resolved."""
    low, high = header.stored_range
    if header.photometry == "PALETTE COLOR":
        return Resolved(_palette(dataset, stored), (0.0, 255.0), notes=("palette colours applied",))
    if stored.ndim == 4:
        return Resolved(stored, (float(low), float(high)))
    if stored.dtype.kind == "f":
        return Resolved(stored.astype(np.float32), _float_range(stored), _windows(dataset))
    if header.bits_stored == 1:
        return _one_bit(header, stored)
    resolved = _to_physical(dataset, header, stored)
    if header.photometry == "MONOCHROME1":
        padding = number(dataset, "PixelPaddingValue")
        return _turn_round(resolved, stored == padding if padding is not None else None)
    return resolved


def _palette(dataset: Dataset, stored: Pixels) -> npt.NDArray[np.uint8]:
    colours = apply_color_lut(stored, dataset)
    if colours.dtype == np.uint8:
        return np.ascontiguousarray(colours[..., :3], dtype=np.uint8)
    return np.asarray(colours[..., :3] >> 8, dtype=np.uint8)  # 16-bit entries: the screen's eight bits are the upper ones


def _one_bit(header: PixelHeader, stored: Pixels) -> Resolved:
    black = stored.astype(bool) == (header.photometry == "MONOCHROME1")
    return Resolved(np.where(black, 0, 255).astype(np.uint8), (0.0, 255.0))


def _to_physical(dataset: Dataset, header: PixelHeader, stored: Pixels) -> Resolved:
    low, high = header.stored_range
    windows = _windows(dataset)
    if "ModalityLUTSequence" in dataset:
        pixels = np.asarray(apply_modality_lut(stored, dataset)).astype(np.float32)
        return Resolved(pixels, _float_range(pixels), windows, ("modality table applied",))
    rescales = [_rescale(dataset, frame) for frame in range(header.frames)]
    if all(rescale == (1.0, 0.0) for rescale in rescales):
        return Resolved(stored, (float(low), float(high)), windows)
    edges = [slope * edge + intercept for slope, intercept in rescales for edge in (low, high)]
    pixels = np.empty(stored.shape, dtype=np.float64)
    for frame, (slope, intercept) in enumerate(rescales):
        pixels[frame] = stored[frame] * np.float64(slope) + intercept
    whole = all(slope.is_integer() and intercept.is_integer() for slope, intercept in rescales)
    kinds = (np.int16, np.uint16, np.int32) if whole else ()
    return Resolved(pixels.astype(_first_that_fits(pixels, kinds)), (min(edges), max(edges)), windows)


def _rescale(dataset: Dataset, frame: int) -> tuple[float, float]:
    """(slope, intercept) of a frame. A slope of 0 would erase the picture: refused."""
    holder = frame_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
    if slope == 0.0:
        raise FilmUnreadable("The DICOM file's rescale slope is 0, which would erase the picture.")
    return 1.0 if slope is None else slope, intercept or 0.0


def _first_that_fits(pixels: Pixels, kinds: tuple[npt.DTypeLike, ...]) -> npt.DTypeLike:
    """Whole values stay integers (CT in Hounsfield units becomes int16), others become float32."""
    low, high = float(pixels.min()), float(pixels.max())
    for kind in kinds:
        bounds = np.iinfo(np.dtype(kind))
        if bounds.min <= low and high <= bounds.max:
            return kind
    return np.float32


def _turn_round(resolved: Resolved, padding: npt.NDArray[np.bool_] | None) -> Resolved:
    """MONOCHROME1: value v becomes low + high - v; what was padding stays black rather than becoming white."""
    total = sum(resolved.value_range)
    source = resolved.pixels
    turned = total - source.astype(np.float64)
    if padding is not None and padding.any() and not padding.all():
        turned[padding] = turned[~padding].min()
    whole = source.dtype.kind in "ui" and float(total).is_integer()
    pixels = turned.astype(_first_that_fits(turned, (source.dtype, np.int16, np.uint16, np.int32) if whole else ()))
    notes = (*resolved.notes, "MONOCHROME1 turned round: larger values are brighter")
    return Resolved(pixels, resolved.value_range, tuple(_mirror(w, total) for w in resolved.windows), notes)


def _mirror(window: Window, total: float) -> Window:
    """The window that shows `total - v` just as the old one, inverted, showed v."""
    if window.function == "table":
        top = max(window.table) + min(window.table)
        table = tuple(top - level for level in reversed(window.table))
        return replace(window, center=total - window.center + 1.0, table=table)
    shift = 1.0 if window.function == "linear" else 0.0  # "linear" is centred half a grey level low
    return replace(window, center=total - window.center + shift)


def _windows(dataset: Dataset) -> tuple[Window, ...]:
    """Tables first, then center and width pairs, in the file's order; nonsense ones are left out."""
    holder = frame_group(dataset, 0, "FrameVOILUTSequence") or dataset
    tables = [_table(item, dataset) for item in holder.get("VOILUTSequence") or ()]
    function = VOI_FUNCTIONS.get(word(holder, "VOILUTFunction"), "linear")
    names = words(holder, "WindowCenterWidthExplanation")
    pairs = zip(numbers(holder, "WindowCenter"), numbers(holder, "WindowWidth"), strict=False)
    windows = [
        Window(center, width, window_name(names[index]) if index < len(names) else "", function)
        for index, (center, width) in enumerate(pairs)
        if width >= 1.0 or (width > 0.0 and function != "linear")
    ]
    return tuple(dict.fromkeys((*(table for table in tables if table is not None), *windows)))


def _table(item: Dataset, dataset: Dataset) -> Window | None:
    """A VOI LUT Sequence item (PS3.3 C.11.2.1.1): number of entries, first value mapped, bits of an entry."""
    descriptor, entries = numbers(item, "LUTDescriptor"), item.get("LUTData")
    if len(descriptor) != 3 or entries is None:
        return None
    count, first = int(descriptor[0]) or 2**16, descriptor[1]
    if isinstance(entries, bytes):
        order = ">" if str(dataset.file_meta.TransferSyntaxUID) == "1.2.840.10008.1.2.2" else "<"
        entries = np.frombuffer(entries, dtype="u1" if len(entries) == count else f"{order}u2").tolist()
    table = tuple(int(entry) for entry in (entries if isinstance(entries, list) else list(entries)))
    if len(table) != count or len(table) < 2:
        return None
    name = window_name(word(item, "LUTExplanation"))
    return Window(center=first + count / 2, width=float(count), name=name, function="table", table=table)


def _float_range(pixels: Pixels) -> tuple[float, float]:
    values = pixels[np.isfinite(pixels)]
    if values.size == 0:
        raise FilmUnreadable("The film holds no valid values.")
    low, high = float(values.min()), float(values.max())
    return (low, high) if math.isfinite(high - low) else (-1.0, 1.0)
