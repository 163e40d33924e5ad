"""From a MedicalImage to the array a backbone eats: the one path that training, serving and the UI share.

    MedicalImage --pick slice--> (H, W) --window--> uint8 --resize, crop or pad--> (S, S, 3) --normalise--> (3, S, S)
                 `------------- render: exactly the pixels the model sees -------------'

On 8-bit films the result equals open_clip's own `image_transform_v2(is_train=False)` bit for bit. Deeper data are
windowed to 8 bits first, never clipped. Numpy and Pillow only: this file runs in processes that hold no torch.

Which window, in this order: the caller's; the first the file itself names; for CT the usual soft-tissue window
(40/400 HU); for MR, NIfTI and anything deeper than 8 bits the 0.5 to 99.5 percentiles of the slice; else all 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from foundation.errors import FilmUnsupported, InvalidRequest
from foundation.image import MedicalImage, Window
from foundation.strips import resize_in_strips

PREPROCESS_VERSION = 1
CT_WINDOW = Window(center=40.0, width=400.0, name="CT soft tissue (default)")
FULL_RANGE_8BIT = Window(center=127.5, width=255.0, name="full range")
ROBUST_PERCENTILES = (0.5, 99.5)

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "random": Image.Resampling.BICUBIC,  # open_clip's own rule: "random" means bicubic outside training
}
LARGE_BYTES = 1 << 20  # of a film that is worth a second thread
MAX_ASPECT_RATIO = 64  # beyond it "shortest" would blow a strip of pixels up to gigabytes
RESIZE_MODES = ("squash", "shortest", "longest")
OPEN_CLIP_KEYS = frozenset({"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"})


@dataclass(frozen=True)
class InputContract:
    """What a backbone eats, in open_clip's words: a square of `size` pixels, RGB, (film / 255 - mean) / std."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "squash"
    fill_color: int = 0
    version: int = PREPROCESS_VERSION

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise _unknown("interpolation", self.interpolation, sorted(INTERPOLATIONS))
        if self.resize_mode not in RESIZE_MODES:
            raise _unknown("resize_mode", self.resize_mode, RESIZE_MODES)
        if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InvalidRequest(
                "The preprocessing needs a positive size, three means and three positive standard deviations.",
                param="preprocess_cfg",
            )

    @classmethod
    def from_open_clip(cls, preprocess_cfg: Mapping[str, object], image_size: int) -> InputContract:
        """The contract of an open_clip checkpoint; a key missing in its `preprocess_cfg` gets open_clip's default."""
        unknown = sorted(set(preprocess_cfg) - OPEN_CLIP_KEYS)
        if unknown:
            raise _unknown("preprocess_cfg", ", ".join(unknown), sorted(OPEN_CLIP_KEYS))
        if preprocess_cfg.get("mode", "RGB") != "RGB":
            raise _unknown("mode", str(preprocess_cfg["mode"]), ["RGB"])
        return cls(
            size=image_size,
            mean=_three(preprocess_cfg.get("mean"), OPENAI_MEAN),
            std=_three(preprocess_cfg.get("std"), OPENAI_STD),
            interpolation=str(preprocess_cfg.get("interpolation") or "bicubic"),
            resize_mode=str(preprocess_cfg.get("resize_mode") or "shortest"),
            fill_color=int(str(preprocess_cfg.get("fill_color") or 0)),
        )


@dataclass(frozen=True)
class Placement:
    """How a film lies in the model's square of `size` pixels: resized to height x width, its corner at (top, left).

    Negative corners mean that the film's edges are cut off.
    """

    height: int
    width: int
    top: int
    left: int
    size: int

    @property
    def spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(start, length) in the square, of rows and of columns."""
        return (self.top, self.height), (self.left, self.width)


def preprocess(
    image: MedicalImage, contract: InputContract, *, slice_index: int | None = None, window: Window | None = None
) -> npt.NDArray[np.float32]:
    """(3, S, S) float32: `normalise(render(...))`."""
    return normalise(render(image, contract, slice_index=slice_index, window=window), contract)


def render(
    image: MedicalImage,
    contract: InputContract,
    *,
    slice_index: int | None = None,
    window: Window | None = None,
    helper: Executor | None = None,
) -> npt.NDArray[np.uint8]:
    """(S, S, 3) uint8: exactly what the model sees. Without `slice_index` the middle slice; grey is repeated.

    helper: a further thread that takes a part of a large film's resizing.
    """
    shown = to_8bit(image, slice_index=slice_index, window=window)
    return np.asarray(_fit(shown, contract, helper).convert("RGB"))


def normalise(film: npt.NDArray[np.uint8], contract: InputContract) -> npt.NDArray[np.float32]:
    """(S, S, 3) uint8 -> (3, S, S) float32 = (film / 255 - mean) / std."""
    scaled = film.astype(np.float32) / np.float32(255)
    scaled -= np.asarray(contract.mean, dtype=np.float32)
    scaled /= np.asarray(contract.std, dtype=np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def to_8bit(image: MedicalImage, *, slice_index: int | None = None, window: Window | None = None) -> npt.NDArray[np.uint8]:
    """One slice at its own resolution, windowed: (H, W) or, in colour, (H, W, 3) uint8."""
    pixels = image.pixels[pick_slice(image, slice_index)]
    if image.is_color:
        if window is not None:
            raise InvalidRequest("A colour film has no grey-level window: leave the window out.", param="window")
        low, high = (0.0, 255.0) if pixels.dtype == np.uint8 else image.value_range
        return _apply(pixels, Window(center=(low + high) / 2, width=high - low))
    return _apply(pixels, window or fit_window(image, slice_index))


def pick_slice(image: MedicalImage, slice_index: int | None = None) -> int:
    """The slice to show: the one asked for, else the middle one. Raises InvalidRequest outside 0..Z-1."""
    if slice_index is None:
        return image.slices // 2
    if not 0 <= slice_index < image.slices:
        raise InvalidRequest(
            f"Slice {slice_index} does not exist: this film has slices 0 to {image.slices - 1}.", param="slice"
        )
    return slice_index


def fit_window(image: MedicalImage, slice_index: int | None = None) -> Window:
    """The window used when the caller gives none, so that the UI can show it; the order is at the top of this file."""
    if image.is_color:
        return FULL_RANGE_8BIT
    if image.windows:
        return image.windows[0]
    if image.modality == "CT" and image.pixels.dtype != np.uint8:
        return CT_WINDOW
    if image.modality == "MR" or image.source_format == "nifti" or image.pixels.dtype != np.uint8:
        return _robust_window(image.pixels[pick_slice(image, slice_index)])
    return FULL_RANGE_8BIT


def _robust_window(pixels: npt.NDArray[np.generic]) -> Window:
    values = pixels.astype(np.float64).ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Window(center=0.5, width=1.0, name="empty")
    low, high = (float(edge) for edge in np.percentile(values, ROBUST_PERCENTILES))
    if low == high:  # nearly all of the slice is one value: keep the few that differ visible
        low, high = float(values.min()), float(values.max())
    if low == high:
        return Window(center=low + 0.5, width=1.0, name="flat")
    return Window(center=low / 2 + high / 2, width=high - low, name="percentiles 0.5 to 99.5")


def _apply(pixels: npt.NDArray[np.generic], window: Window) -> npt.NDArray[np.uint8]:
    """Stored values -> 0..255. Small integers go through a table of all their values: fast, and exact."""
    if pixels.dtype == np.uint8 and window == FULL_RANGE_8BIT:
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    if pixels.dtype.kind in "ui" and pixels.dtype.itemsize <= 2:
        bounds = np.iinfo(pixels.dtype)  # type: ignore[type-var]  # the kind was checked above
        table = _to_levels(np.arange(bounds.min, bounds.max + 1, dtype=np.float64), window)
        return table[pixels.astype(np.int32) - int(bounds.min)]
    return _to_levels(pixels.astype(np.float64), window)


def _to_levels(values: npt.NDArray[np.float64], window: Window) -> npt.NDArray[np.uint8]:
    fraction = np.nan_to_num(window.brightness(values), nan=0.0)  # NaN marks "no data" in float volumes: black
    return (np.clip(fraction, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def placement(height: int, width: int, contract: InputContract) -> Placement:
    """Where `render` puts a film of height x width pixels. The rounding follows torchvision's to the pixel."""
    size = contract.size
    new_height, new_width = size, size
    if contract.resize_mode == "shortest":
        short, long = min(width, height), max(width, height)
        if long > short * MAX_ASPECT_RATIO:
            raise FilmUnsupported(f"A film of {height} x {width} pixels is a strip: crop it to what it shows.")
        new_long = int(size * long / short)
        new_width, new_height = (size, new_long) if width <= height else (new_long, size)
    elif contract.resize_mode == "longest":
        ratio = max(height, width) / size
        new_width, new_height = max(1, round(width / ratio)), max(1, round(height / ratio))
    return Placement(new_height, new_width, _offset(new_height, size), _offset(new_width, size), size)


def fit_mask(mask: npt.NDArray[np.bool_], contract: InputContract) -> npt.NDArray[np.uint8]:
    """A mask in a film's geometry (H, W) -> (S, S) uint8: the share of each model pixel it covers, 255 being all of it."""
    shown = np.where(mask, np.uint8(255), np.uint8(0))
    return np.asarray(_fit(shown, replace(contract, interpolation="bilinear", fill_color=0)))


def fit_map(values: npt.NDArray[np.float32], contract: InputContract) -> npt.NDArray[np.float32]:
    """A map in a film's geometry (H, W) -> (S, S) over the model's square; 0 where the film does not reach."""
    shown = np.asarray(values, np.float32)
    return np.asarray(_fit(shown, replace(contract, interpolation="bilinear", fill_color=0)), np.float32)


def to_film(values: npt.NDArray[np.float32], height: int, width: int, contract: InputContract) -> npt.NDArray[np.float32]:
    """A map (h, w) over the model's square -> (height, width) of the film it was made from; 0 where `render` cut it off."""
    place = placement(height, width, contract)
    size = place.size
    square = np.asarray(_resize_map(values, size, size))
    seen = np.zeros((place.height, place.width), np.float32)
    rows, columns = (slice(max(0, -start), min(length, size - start)) for start, length in place.spans)
    seen[rows, columns] = square[
        rows.start + place.top : rows.stop + place.top, columns.start + place.left : columns.stop + place.left
    ]
    return _resize_map(seen, height, width)


def _resize_map(values: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    resized = Image.fromarray(np.asarray(values, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


def _offset(length: int, size: int) -> int:
    return (size - length) // 2 if length < size else -round((length - size) / 2)


def _fit(shown: npt.NDArray[Any], contract: InputContract, helper: Executor | None = None) -> Image.Image:
    """(H, W) or (H, W, 3), uint8 or float32: resized as open_clip does, then cropped or padded to the square."""
    place = placement(shown.shape[0], shown.shape[1], contract)
    method = INTERPOLATIONS[contract.interpolation]
    if helper is not None and shown.nbytes >= LARGE_BYTES and place.width < shown.shape[1]:
        resized = resize_in_strips(shown, place.width, place.height, method, helper)
    else:
        resized = Image.fromarray(shown)
        if resized.size != (place.width, place.height):
            resized = resized.resize((place.width, place.height), method)
    return _lay(resized, place, contract)


def _lay(resized: Image.Image, place: Placement, contract: InputContract) -> Image.Image:
    """A resized film in the model's square: cropped or padded."""
    if (place.height, place.width) == (place.size, place.size):
        return resized
    fill = contract.fill_color if contract.resize_mode == "longest" else 0
    canvas = Image.new(resized.mode, (place.size, place.size), (fill,) * len(resized.getbands()))
    canvas.paste(resized, (place.left, place.top))
    return canvas


def _three(value: object, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if value is None:
        return default
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    if isinstance(value, (list, tuple)) and len(value) == 3:
        return (float(value[0]), float(value[1]), float(value[2]))
    raise InvalidRequest("Mean and standard deviation must be one number or three.", param="preprocess_cfg")


def _unknown(option: str, value: str, known: list[str] | tuple[str, ...]) -> InvalidRequest:
    return InvalidRequest(f"{option}: {value!r} is not known; use one of {', '.join(known)}.", param=option)
