"""How large a film may be, asked of its header before anything is decoded.

A few kilobytes can claim to be gigabytes (a lying header, a deflate bomb). Every reader brings the size it found in
the header here first, and caps every inflate. The numbers are generous for real films: the largest mammogram has 16
million pixels, a thin-slice CT of the whole body about 500 million voxels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from foundation.errors import FilmTooLarge, FilmUnreadable

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """max_pixels is for one slice; max_inflated_bytes for everything a file becomes in memory, all slices together."""

    max_bytes: int = 512 * MEBIBYTE
    max_pixels: int = 64 * MEBIBYTE
    max_frames: int = 4096
    max_inflated_bytes: int = 1024 * MEBIBYTE

    def check_bytes(self, size_bytes: int) -> None:
        if size_bytes > self.max_bytes:
            raise FilmTooLarge(f"The file has {size_bytes:,} bytes; at most {self.max_bytes:,} are read. Send a smaller film.")

    def check_shape(self, slices: int, height: int, width: int, bytes_per_pixel: int) -> None:
        """What the header claims, before decoding; bytes_per_pixel counts all channels."""
        if min(slices, height, width, bytes_per_pixel) < 1:
            raise FilmUnreadable("The file's header claims an empty picture; export the film again.")
        if slices > self.max_frames:
            raise FilmTooLarge(f"The film has {slices:,} slices or frames; at most {self.max_frames:,} are read.")
        if height * width > self.max_pixels:
            raise FilmTooLarge(
                f"The film has {height:,} x {width:,} pixels; at most {self.max_pixels:,} are read. Send it smaller."
            )
        self.check_inflated(slices * height * width * bytes_per_pixel)

    def check_inflated(self, size_bytes: int) -> None:
        if size_bytes > self.max_inflated_bytes:
            raise FilmTooLarge(
                f"The film would take {size_bytes:,} bytes unpacked; at most {self.max_inflated_bytes:,} are read."
            )

    def inflate(self, packed: bytes, *, raw: bool, at_most: int | None = None) -> bytes:
        """Inflate a raw deflate stream or a gzip file (of one or more members), never beyond the limit."""
        cap = self.max_inflated_bytes if at_most is None else min(at_most, self.max_inflated_bytes)
        parts: list[bytes] = []
        room = cap + 1
        while packed and room > 0:
            stream = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 16)
            try:
                part = stream.decompress(packed, room)
            except zlib.error:
                raise FilmUnreadable("The file's compressed part is damaged; export or download it again.") from None
            parts.append(part)
            room -= len(part)
            if room > 0 and not stream.eof:
                raise FilmUnreadable("The file's compressed part is cut short; export or download it again.")
            packed = b"" if raw else stream.unused_data.lstrip(b"\0")
        if room <= 0:
            raise FilmTooLarge(f"The file unpacks to over {cap:,} bytes, more than it claims or more than is read.")
        return b"".join(parts)
