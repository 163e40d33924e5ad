"""TIFF -> MedicalImage; pages of one size become slices.

tifffile reads the headers, and the pixels where they are uncompressed. Compressed pages go through Pillow's libtiff,
which unpacks strip by strip into buffers of the announced size, so a small file cannot become a large one.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from foundation.errors import FilmUnreadable, FilmUnsupported
from foundation.image import MedicalImage
from foundation.readers.limits import Limits
from foundation.readers.raster import TOO_SHALLOW, open_picture, pixels_of, type_range

NONE, MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR = 1, 0, 1, 2, 3, 6
PILLOW_COMPRESSIONS = frozenset({2, 3, 4, 5, 7, 8, 32773, 32946})  # fax, LZW, JPEG, deflate, PackBits
REDUCED = 1  # bit of NewSubfileType: a thumbnail of another page
Pixels = npt.NDArray[np.generic]


def read_tiff(data: bytes, limits: Limits) -> MedicalImage:
    with tifffile.TiffFile(BytesIO(data)) as file:
        pages = _pages(file, limits)
        first = pages[0]
        limits.check_shape(len(pages), first.imagelength, first.imagewidth, _bytes_per_pixel(first))
        by_pillow = first.compression != NONE or first.photometric == PALETTE or first.bitspersample < 8
        notes = (TOO_SHALLOW,) if by_pillow and first.samplesperpixel > 1 and first.bitspersample == 16 else ()
        if by_pillow:
            slices = _by_pillow(data, [page.index for page in pages], first, limits)
        else:
            slices = [_by_tifffile(page) for page in pages]
    oriented = [_orient(pixels, int(first.tags.valueof("Orientation", 1))) for pixels in slices]
    if len({pixels.shape for pixels in oriented}) > 1:
        raise FilmUnsupported("The TIFF file mixes grey and colour pages; send them one by one.")
    stacked = np.stack(oriented)
    return MedicalImage(pixels=stacked, value_range=_value_range(stacked), source_format="tiff", notes=notes)


def _pages(file: tifffile.TiffFile, limits: Limits) -> list[tifffile.TiffPage]:
    pages: list[tifffile.TiffPage] = []
    for count, page in enumerate(file.pages):
        if count > limits.max_frames:
            limits.check_shape(count, 1, 1, 1)
        page = page.aspage()
        if not page.subfiletype & REDUCED or count == 0:
            pages.append(page)
    if not pages:
        raise FilmUnreadable("The TIFF file holds no picture.")
    for page in pages:
        _check_page(page)
    if len({(page.imagelength, page.imagewidth, page.samplesperpixel, page.dtype) for page in pages}) > 1:
        raise FilmUnsupported("The TIFF file's pages differ in size or kind; send them one by one.")
    return pages


def _check_page(page: tifffile.TiffPage) -> None:
    if page.imagedepth != 1 or page.samplesperpixel not in (1, 2, 3, 4):
        raise FilmUnsupported("The TIFF file's number of channels is not supported; save it as RGB or grey.")
    if page.photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR):
        raise FilmUnsupported("The TIFF file's colour model is not supported; save it as RGB or grey.")
    if page.compression != NONE and page.compression not in PILLOW_COMPRESSIONS:
        raise FilmUnsupported("The TIFF file's compression is not supported; save it uncompressed or with deflate.")
    if page.dtype is None or page.dtype.kind not in "uifb" or page.dtype.itemsize > 4:
        raise FilmUnsupported("The TIFF file's pixel type is not supported; save it with 8 or 16 bits.")
    if page.dtype.kind == "f" and page.compression != NONE:
        raise FilmUnsupported("Compressed floating-point TIFF is not supported; save it uncompressed.")
    if page.dtype.itemsize == 4 and page.dtype.kind != "f":
        raise FilmUnsupported("32-bit integer TIFF is not supported; save it with 8 or 16 bits.")
    if page.dtype.kind == "i" and page.compression != NONE:
        raise FilmUnsupported("Compressed TIFF with signed pixels is not supported; save it uncompressed.")


def _bytes_per_pixel(page: tifffile.TiffPage) -> int:
    assert page.dtype is not None  # checked in _check_page
    return int(page.samplesperpixel * max(1, page.dtype.itemsize))


def _by_tifffile(page: tifffile.TiffPage) -> Pixels:
    expected = page.imagelength * page.imagewidth * _bytes_per_pixel(page)
    if sum(page.databytecounts) < expected:
        raise FilmUnreadable("The TIFF file is cut short: it holds fewer pixels than its header states.")
    pixels = np.asarray(page.asarray())
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        pixels = np.moveaxis(pixels, 0, -1)
    if page.samplesperpixel in (2, 4):
        pixels = pixels[..., : page.samplesperpixel - 1]  # transparency
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if page.photometric == MIN_IS_WHITE:
        return _inverted(pixels)
    return pixels.astype(pixels.dtype.newbyteorder("="))


def _by_pillow(data: bytes, indices: list[int], first: tifffile.TiffPage, limits: Limits) -> list[Pixels]:
    picture = open_picture(data, "TIFF", limits)
    slices = []
    for index in indices:
        picture.seek(index)
        limits.check_shape(1, picture.height, picture.width, bytes_per_pixel=4)
        # NOTE: Pillow turns itself min-is-white round at 8 bits and below, but not at 16.
        pixels = pixels_of(_unturned(picture))
        deep_white = first.photometric == MIN_IS_WHITE and first.bitspersample == 16
        slices.append(_inverted(pixels) if deep_white else pixels)
    return slices


def _unturned(picture: Image.Image) -> Image.Image:
    """A copy that has been decoded; orientation is applied by us for both ways of reading."""
    return picture.copy()


def _inverted(pixels: Pixels) -> Pixels:
    if pixels.dtype.kind == "f":
        return np.asarray(pixels.max() - pixels)
    low, high = type_range(pixels.dtype)
    return (int(low + high) - pixels.astype(np.int64)).astype(pixels.dtype.newbyteorder("="))


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """TIFF's Orientation tag (1 to 8): which corner of the film the first pixel is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _value_range(pixels: Pixels) -> tuple[float, float]:
    if pixels.dtype.kind != "f":
        return type_range(pixels.dtype)
    values = pixels[np.isfinite(pixels)]
    if values.size == 0:
        raise FilmUnreadable("The TIFF file holds no valid values.")
    return float(values.min()), float(values.max())
