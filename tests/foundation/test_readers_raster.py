"""PNG, JPEG and TIFF: every depth and colour model that is read, and those that are refused."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from film_factory import gradient, picture
from PIL import Image

from foundation.errors import FilmTooLarge, FilmUnreadable, FilmUnsupported
from foundation.preprocess import to_8bit
from foundation.readers import Limits, read_film

GREY = gradient(top=255, dtype=np.uint8)
DEEP = gradient(top=65535)
COLOUR = np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def _tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("pixels", [GREY, DEEP, COLOUR], ids=["grey", "deep", "colour"])
def test_lossless_pictures_come_back(kind: str, pixels: np.ndarray) -> None:
    image = read_film(picture(pixels, kind))
    np.testing.assert_array_equal(image.pixels[0], pixels)
    assert image.pixels.dtype == pixels.dtype
    assert image.source_format == kind.lower()


def test_16_bit_is_never_clipped() -> None:
    """Pillow's own conversion to 8 bits would turn all of this white."""
    film = (30000 + gradient(top=4000)).astype(np.uint16)
    shown = to_8bit(read_film(picture(film, "PNG")))
    assert len(np.unique(shown)) > 200


def test_jpeg_grey_and_colour_equal_pillow() -> None:
    for pixels in (GREY, COLOUR):
        data = picture(pixels, "JPEG", quality=90)
        np.testing.assert_array_equal(read_film(data).pixels[0], np.asarray(Image.open(BytesIO(data))))


def test_transparency_and_palette_equal_convert_rgb() -> None:
    rgba = Image.fromarray(np.dstack([COLOUR, GREY]))
    palette = Image.fromarray(COLOUR).quantize(16)
    for source in (rgba, palette):
        image = read_film(picture(source, "PNG"))
        np.testing.assert_array_equal(image.pixels[0], np.asarray(source.convert("RGB")))
    grey_alpha = Image.fromarray(np.dstack([GREY, GREY[::-1]]), "LA")
    np.testing.assert_array_equal(read_film(picture(grey_alpha, "PNG")).pixels[0], GREY)


def test_one_bit_is_black_and_white() -> None:
    for kind in ("PNG", "TIFF"):
        image = read_film(picture(Image.fromarray(GREY > 100), kind))
        np.testing.assert_array_equal(image.pixels[0], np.where(GREY > 100, 255, 0))


def test_colour_that_is_grey_everywhere_is_grey() -> None:
    image = read_film(picture(np.dstack([GREY] * 3), "PNG"))
    assert not image.is_color
    np.testing.assert_array_equal(image.pixels[0], GREY)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    """Against Pillow's own exif_transpose, on a picture with four different corners."""
    from PIL import ImageOps

    corners = np.zeros((16, 32), dtype=np.uint8)
    corners[:8, :16], corners[:8, 16:], corners[8:, :16] = 60, 120, 240
    source = Image.fromarray(corners)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 100} if kind == "JPEG" else {}
    data = picture(source, kind, tiffinfo={274: orientation}) if kind == "TIFF" else picture(source, kind, exif=exif, **options)
    truth = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    np.testing.assert_array_equal(read_film(data).pixels[0], truth)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("pixels", [GREY, DEEP, COLOUR], ids=["grey", "deep", "colour"])
def test_tiff_compressions(compression: str | None, pixels: np.ndarray) -> None:
    names = {None: "raw", "zlib": "tiff_adobe_deflate", "lzw": "tiff_lzw", "packbits": "packbits"}
    data = picture(pixels, "TIFF", compression=names[compression])
    np.testing.assert_array_equal(read_film(data).pixels[0], pixels)


def test_tiff_pages_become_slices() -> None:
    volume = np.stack([DEEP, DEEP[::-1], DEEP // 2])
    np.testing.assert_array_equal(read_film(_tiff(volume, photometric="minisblack")).pixels, volume)
    pages = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
    data = picture(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    np.testing.assert_array_equal(read_film(data).pixels, np.stack([GREY, GREY[::-1]]))
    with pytest.raises(FilmTooLarge):
        read_film(_tiff(volume, photometric="minisblack"), Limits(max_frames=2))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff_deep_colour_float_and_planes(byteorder: str) -> None:
    deep_colour = (COLOUR.astype(np.uint16) * 257)[..., ::-1].copy()
    for planar, source in (("contig", deep_colour), ("separate", deep_colour.transpose(2, 0, 1).copy())):
        image = read_film(_tiff(source, photometric="rgb", planarconfig=planar, byteorder=byteorder))
        np.testing.assert_array_equal(image.pixels[0], deep_colour)
        assert image.pixels.dtype == np.uint16
    floats = DEEP.astype(np.float32) / 7
    image = read_film(_tiff(floats, photometric="minisblack", byteorder=byteorder))
    np.testing.assert_array_equal(image.pixels[0], floats)
    assert image.value_range == (float(floats.min()), float(floats.max()))


@pytest.mark.parametrize("pixels", [GREY, DEEP], ids=["grey", "deep"])
@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
def test_tiff_min_is_white_is_turned_round(pixels: np.ndarray, compression: str) -> None:
    data = bytearray(picture(pixels, "TIFF", compression=compression))
    entry = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # PhotometricInterpretation, SHORT, 1 value: 1
    data[entry + 8] = 0
    np.testing.assert_array_equal(read_film(bytes(data)).pixels[0], np.iinfo(pixels.dtype).max - pixels)


def test_unsupported_kinds_are_named() -> None:
    cmyk = picture(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")
    with pytest.raises(FilmUnsupported, match="CMYK"):
        read_film(cmyk)
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
    with pytest.raises(FilmUnsupported, match="animated"):
        read_film(picture(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    mixed = [Image.fromarray(GREY), Image.fromarray(GREY[:10])]
    with pytest.raises(FilmUnsupported, match="differ in size"):
        read_film(picture(mixed[0], "TIFF", save_all=True, append_images=mixed[1:]))
    with pytest.raises(FilmUnsupported, match="32-bit"):
        read_film(_tiff(DEEP.astype(np.uint32), photometric="minisblack"))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (picture(GREY, "GIF"), "GIF"),
        (picture(GREY, "BMP"), "BMP"),
        (picture(GREY, "WEBP"), "WebP"),
        (b"%PDF-1.7 ....", "PDF"),
        (b"PK\x03\x04" + b"\0" * 100, "ZIP"),
        (b"hello, I am a text", "no known film format"),
        (b"\0" * 1000, "no known film format"),
    ],
)
def test_foreign_formats_are_refused_by_name(data: bytes, named: str) -> None:
    with pytest.raises(FilmUnsupported, match=named):
        read_film(data)


def test_sizes_are_checked_before_decoding() -> None:
    for kind in ("PNG", "JPEG", "TIFF"):
        with pytest.raises(FilmTooLarge):
            read_film(picture(GREY, kind), Limits(max_pixels=100))
    huge = bytearray(picture(GREY, "PNG"))
    huge[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    with pytest.raises(FilmTooLarge):
        read_film(bytes(huge))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_truncated_pictures_are_unreadable(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = picture(noise, kind)
    with pytest.raises(FilmUnreadable):
        read_film(data[: len(data) // 2])
    with pytest.raises(FilmUnreadable, match="empty"):
        read_film(b"")
