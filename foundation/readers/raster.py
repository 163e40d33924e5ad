"""PNG and JPEG -> MedicalImage, through Pillow: 8 and 16 bit grey, colour, palette, one bit.

Transparency is dropped, as `Image.convert("RGB")` does, so that a picture means the same here and in plain open_clip. A
colour picture that is grey everywhere is read as grey. EXIF orientation is applied. Sizes are checked before decoding.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from foundation.errors import FilmTooLarge, FilmUnreadable, FilmUnsupported
from foundation.image import MedicalImage
from foundation.readers.codestream import inspect
from foundation.readers.limits import Limits

DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I"})
TOO_SHALLOW = "16-bit colour reduced to 8 bits"


def read_png(data: bytes, limits: Limits) -> MedicalImage:
    picture = open_picture(data, "PNG", limits)
    if getattr(picture, "n_frames", 1) > 1:
        raise FilmUnsupported("This is an animated PNG; send its pictures one by one.")
    depth, colour_type = data[24], data[25]
    notes = (TOO_SHALLOW,) if depth == 16 and colour_type != 0 else ()
    ImageOps.exif_transpose(picture, in_place=True)
    return to_film(pixels_of(picture), "png", notes)


def read_jpeg(data: bytes, limits: Limits) -> MedicalImage:
    stream = inspect(data)
    if stream.precision_bits != 8 or stream.process not in ("jpeg", "jpeg-progressive"):
        raise FilmUnsupported(
            f"This is a {stream.precision_bits}-bit {stream.process} file, which is not supported; "
            "save it as an 8-bit baseline JPEG or as PNG."
        )
    if stream.components not in (1, 3):
        raise FilmUnsupported("This JPEG file is in print colours (CMYK); save it as RGB or grey.")
    picture = open_picture(data, "JPEG", limits)
    ImageOps.exif_transpose(picture, in_place=True)
    return to_film(pixels_of(picture), "jpeg")


def open_picture(data: bytes, kind: str, limits: Limits) -> Image.Image:
    """The picture with only its header read, its size checked."""
    try:
        picture = Image.open(BytesIO(data), formats=[kind])
    except Image.DecompressionBombError:
        raise FilmTooLarge("The picture has far more pixels than are read; send it smaller.") from None
    except Exception:  # Pillow fails on broken headers in many ways
        raise FilmUnreadable(f"The {kind} file's header is damaged; save the picture again.") from None
    limits.check_shape(1, picture.height, picture.width, bytes_per_pixel=4)
    return picture


def pixels_of(picture: Image.Image) -> npt.NDArray[np.generic]:
    """(H, W) uint8 or uint16, or (H, W, 3) uint8."""
    if picture.mode in DEEP_MODES:
        return _deep(np.asarray(picture))
    if picture.mode == "L":
        return np.asarray(picture)
    if picture.mode == "1":
        return np.asarray(picture.convert("L"))
    if picture.mode == "LA":
        return np.asarray(picture.getchannel("L"))
    if picture.mode in ("P", "PA", "RGB", "RGBA", "RGBX"):
        return _grey_if_grey(np.asarray(picture.convert("RGB")))
    raise FilmUnsupported("The picture's colour model is not supported; save it as RGB or grey.")


def to_film(pixels: npt.NDArray[np.generic], source_format: str, notes: tuple[str, ...] = ()) -> MedicalImage:
    """One picture (H, W[, 3]) -> MedicalImage."""
    return MedicalImage(
        pixels=np.ascontiguousarray(pixels)[None],
        value_range=type_range(pixels.dtype),
        source_format=source_format,
        notes=notes,
    )


def type_range(dtype: np.dtype[np.generic]) -> tuple[float, float]:
    if dtype.kind == "f":
        return 0.0, 1.0
    bounds = np.iinfo(dtype)  # type: ignore[type-var]  # floats left above
    return float(bounds.min), float(bounds.max)


def _deep(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2:
        low, high = int(values.min()), int(values.max())
        if low >= 0 and high < 2**16:
            return values.astype(np.uint16)
        return values.astype(np.int32)
    return values.astype(np.uint16)


def _grey_if_grey(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    red = colours[..., 0]
    if np.array_equal(red, colours[..., 1]) and np.array_equal(red, colours[..., 2]):
        return np.ascontiguousarray(red)
    return colours
