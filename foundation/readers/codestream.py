"""What a JPEG-family codestream says of itself, read from its first markers without decoding it.

A codestream carries its own picture size, which a decoder trusts when it reserves memory; so it is compared with what
the file around it claims first. Covers JPEG (T.81), JPEG-LS (T.87) and JPEG 2000 with HTJ2K (T.800, T.814).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from foundation.errors import FilmUnreadable

SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "


@dataclass(frozen=True)
class Codestream:
    """process: "jpeg", "jpeg-progressive", "jpeg-lossless", "jpeg-arithmetic", "jpeg-ls" or "jpeg2000"."""

    process: str
    precision_bits: int
    height: int
    width: int
    components: int


def inspect(data: bytes) -> Codestream:
    """The size and depth a codestream claims. Raises FilmUnreadable if its markers make no sense."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        return _jpeg2000(data[_jp2_offset(data) :])
    except (struct.error, IndexError):
        raise _broken() from None


def _jpeg(data: bytes) -> Codestream:
    offset = 2
    while True:
        while data[offset] == 0xFF and data[offset + 1] == 0xFF:
            offset += 1  # fill bytes before a marker
        if data[offset] != 0xFF:
            raise _broken()
        marker = data[offset + 1]
        (length,) = struct.unpack_from(">H", data, offset + 2)
        if marker in SOF_MARKERS:
            precision, height, width, components = struct.unpack_from(">BHHB", data, offset + 4)
            return Codestream(_jpeg_process(marker), precision, height, width, components)
        if length < 2 or marker in (0xD9, 0xDA):  # end of image or start of scan without a frame header
            raise _broken()
        offset += 2 + length


def _jpeg_process(marker: int) -> str:
    if marker == 0xF7:
        return "jpeg-ls"
    if marker >= 0xC9:
        return "jpeg-arithmetic"
    if marker in (0xC3, 0xC5, 0xC6, 0xC7):
        return "jpeg-lossless"
    return "jpeg-progressive" if marker == 0xC2 else "jpeg"


def _jp2_offset(data: bytes) -> int:
    """Where the codestream starts: 0, or past the boxes of a JP2 wrapping."""
    if not data.startswith(JP2_SIGNATURE):
        return 0
    offset = 12
    while data[offset + 4 : offset + 8] != b"jp2c":
        (length,) = struct.unpack_from(">I", data, offset)
        if length < 8:  # also what would keep a box walk from ever ending
            raise _broken()
        offset += length
    return offset + 8


def _jpeg2000(data: bytes) -> Codestream:
    if data[:4] != b"\xff\x4f\xff\x51":
        raise _broken()
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    tile_width, tile_height = struct.unpack_from(">2I", data, 24)
    (components,) = struct.unpack_from(">H", data, 40)
    if right <= left or bottom <= top or tile_width < 1 or tile_height < 1:
        raise _broken()
    return Codestream("jpeg2000", (data[42] & 0x7F) + 1, bottom - top, right - left, components)


def _broken() -> FilmUnreadable:
    return FilmUnreadable("The compressed picture inside the file is damaged; export the film again.")
