"""Bytes around and inside a picture that are not the picture: what follows it, and comments within compressed frames.

JPEG, JPEG-LS   FF FE comments and FF E0 .. FF EF application data (Exif with its thumbnail among them) up to the scan
JPEG 2000       FF 64 comments of the main header
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, RLELossless

from foundation.errors import FilmUnreadable

# Application data that say how colours are coded, so that the picture needs them: APP0 of JFIF without its thumbnail,
# APP8 of JPEG-LS, APP14 of Adobe. Marker -> length and first bytes; none has room for text.
_COLOUR_DATA = {0xE0: (16, b"JFIF\0"), 0xE8: (7, b"mrfx"), 0xEE: (14, b"Adobe")}
_TRUNCATED = "The picture inside the DICOM file is cut short; export the film again."


def bare_pixels(dataset: Dataset, syntax: UID) -> bytes:
    """The value of PixelData with nothing but its frames."""
    data = bytes(dataset.PixelData)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not syntax.is_compressed:
        return _native(data, dataset, frames)
    found = list(islice(generate_frames(data, number_of_frames=frames), frames))
    if len(found) != frames:
        raise FilmUnreadable(_TRUNCATED)
    bare = found if syntax == RLELossless else [bare_codestream(frame) for frame in found]
    return bytes(encapsulate(bare))


def _native(data: bytes, dataset: Dataset, frames: int) -> bytes:
    samples, is_halved = int(dataset.SamplesPerPixel), dataset.PhotometricInterpretation == "YBR_FULL_422"
    bits = int(dataset.Rows) * int(dataset.Columns) * samples * frames * int(dataset.BitsAllocated)
    size = (bits + 7) // 8
    size = size * 2 // 3 if is_halved else size
    if len(data) < size:
        raise FilmUnreadable(_TRUNCATED)
    even = size + size % 2  # the last byte of a swapped big-endian picture stands behind its padding
    return data[:even].ljust(even, b"\0")


def bare_codestream(frame: bytes) -> bytes:
    """A compressed frame without comments; as it is where it is of no kind that holds them."""
    if frame.startswith(b"\xff\x4f\xff"):
        return _without(frame, is_dropped=lambda marker, _: marker == 0x64, scan=0x90)
    if frame.startswith(b"\xff\xd8\xff"):
        return _without(frame, is_dropped=_is_comment, scan=0xDA)
    return frame


def _is_comment(marker: int, content: bytes) -> bool:
    length, start = _COLOUR_DATA.get(marker, (-1, b""))
    is_needed = len(content) + 2 == length and content.startswith(start)
    return marker == 0xFE or (0xE0 <= marker <= 0xEF and not is_needed)


def _without(frame: bytes, is_dropped: Callable[[int, bytes], bool], scan: int) -> bytes:
    """Copy segment by segment up to the first scan (or tile), and all of the rest."""
    kept, offset = [frame[:2]], 2
    while offset + 4 <= len(frame):
        if frame[offset] != 0xFF:
            break
        marker, length = frame[offset + 1], int.from_bytes(frame[offset + 2 : offset + 4], "big")
        if marker == scan:
            return b"".join([*kept, frame[offset:]])
        if not is_dropped(marker, frame[offset + 4 : offset + 2 + length]):
            kept.append(frame[offset : offset + 2 + length])
        offset += 2 + length
    raise FilmUnreadable(_TRUNCATED)
