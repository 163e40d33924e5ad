"""Data set -> stored values, frame by frame, through codecs that have been tested.

Every compressed frame's own header is compared with the data set's before a decoder sees it: a codestream that claims
another size would make the decoder reserve that much. A transfer syntax not in the table is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from foundation.errors import FilmUnreadable, FilmUnsupported
from foundation.readers.codestream import inspect
from foundation.readers.dicom.values import number, word
from foundation.readers.limits import Limits

# Transfer syntax -> pydicom's decoding plugins, best first; () means pydicom itself.
CODECS: dict[str, tuple[str, ...]] = {
    uid.ImplicitVRLittleEndian: (),
    uid.ExplicitVRLittleEndian: (),
    uid.ExplicitVRBigEndian: (),
    uid.RLELossless: ("pydicom",),
    uid.JPEGBaseline8Bit: ("pillow",),
    uid.JPEGExtended12Bit: ("pillow",),
    uid.JPEGLossless: ("gdcm",),
    uid.JPEGLosslessSV1: ("gdcm",),
    uid.JPEGLSLossless: ("pyjpegls", "gdcm"),
    uid.JPEGLSNearLossless: ("pyjpegls", "gdcm"),
    uid.JPEG2000Lossless: ("pylibjpeg",),
    uid.JPEG2000: ("pylibjpeg",),
    uid.HTJ2KLossless: ("pylibjpeg",),
    uid.HTJ2KLosslessRPCL: ("pylibjpeg",),
    uid.HTJ2K: ("pylibjpeg",),
}
PROCESSES: dict[str, frozenset[str]] = {  # what a transfer syntax allows its codestreams to be
    uid.JPEGBaseline8Bit: frozenset({"jpeg"}),
    uid.JPEGExtended12Bit: frozenset({"jpeg"}),
    uid.JPEGLossless: frozenset({"jpeg-lossless"}),
    uid.JPEGLosslessSV1: frozenset({"jpeg-lossless"}),
    uid.JPEGLSLossless: frozenset({"jpeg-ls"}),
    uid.JPEGLSNearLossless: frozenset({"jpeg-ls"}),
    **{
        syntax: frozenset({"jpeg2000"})
        for syntax in (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
    },
}
NEWER_CODECS = {  # standard, but later than pydicom's own list
    "1.2.840.10008.1.2.4.110": "JPEG XL (lossless)",
    "1.2.840.10008.1.2.4.111": "JPEG XL (recompressed JPEG)",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
PACKBITS_UNCOUNTED_BYTES = 64 * 2**20
PHOTOMETRIES = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
)


@dataclass(frozen=True)
class PixelHeader:
    """What the data set says of its pixels, checked to be sane."""

    syntax: UID
    frames: int
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    photometry: str

    @property
    def frame_bytes(self) -> int:
        return math.ceil(self.rows * self.columns * self.samples * self.bits_allocated / 8)

    @property
    def stored_range(self) -> tuple[int, int]:
        if self.is_signed:
            return -(2 ** (self.bits_stored - 1)), 2 ** (self.bits_stored - 1) - 1
        return 0, 2**self.bits_stored - 1


def read_header(dataset: Dataset, limits: Limits) -> PixelHeader:
    """The checked header. Raises FilmTooLarge, FilmUnsupported or FilmUnreadable before anything is decoded."""
    header = PixelHeader(
        syntax=UID(dataset.file_meta.TransferSyntaxUID),
        frames=_whole(dataset, "NumberOfFrames", default=1),
        rows=_whole(dataset, "Rows"),
        columns=_whole(dataset, "Columns"),
        samples=_whole(dataset, "SamplesPerPixel", default=1),
        bits_allocated=_whole(dataset, "BitsAllocated"),
        bits_stored=_whole(dataset, "BitsStored", default=_whole(dataset, "BitsAllocated")),
        is_signed=_whole(dataset, "PixelRepresentation", default=0) == 1,
        photometry=word(dataset, "PhotometricInterpretation"),
    )
    limits.check_shape(header.frames, header.rows, header.columns, header.samples * max(1, header.bits_allocated // 8))
    if header.photometry not in PHOTOMETRIES:
        raise FilmUnsupported("The DICOM file's photometric interpretation is not supported; export it as MONOCHROME2.")
    if header.samples not in (1, 3) or header.bits_allocated not in (1, 8, 16, 32, 64):
        raise FilmUnsupported("The DICOM file's number of channels or bits per pixel is not supported.")
    if not 1 <= header.bits_stored <= header.bits_allocated:
        raise FilmUnreadable("The DICOM file's header contradicts itself about its bits per pixel.")
    return header


def decode(dataset: Dataset, header: PixelHeader) -> npt.NDArray[np.generic]:
    """Stored values (Z, H, W) or, in colour, (Z, H, W, 3); YBR already converted to RGB."""
    plugin = choose_plugin(header.syntax)
    if header.syntax in PROCESSES or header.syntax == uid.RLELossless:
        _check_frames(dataset, header)
    frames = get_decoder(header.syntax).iter_array(dataset, raw=False, decoding_plugin=plugin)
    pixels: npt.NDArray[np.generic] | None = None
    count = 0
    for frame, _properties in frames:
        if count == header.frames:
            break  # more frames than announced: the announced ones are the film
        if frame.shape[:2] != (header.rows, header.columns):
            raise FilmUnreadable("The decoded picture is not of the size the DICOM header states; export it again.")
        if pixels is None:
            pixels = np.empty((header.frames, *frame.shape), dtype=frame.dtype.newbyteorder("="))
        pixels[count] = frame
        count += 1
    if pixels is None or count != header.frames:
        raise FilmUnreadable(f"The film should have {header.frames} frames but holds {count}; it was cut short.")
    return pixels


def choose_plugin(syntax: UID) -> str:
    """The decoding plugin for a transfer syntax; "" for uncompressed data."""
    plugins = CODECS.get(syntax)
    if plugins is None:
        raise FilmUnsupported(
            f"This DICOM file is compressed with {_codec_name(syntax)}, which is not supported; "
            "export it uncompressed or as JPEG 2000."
        )
    if not plugins:
        return ""
    available = get_decoder(syntax).available_plugins
    for plugin in plugins:
        if plugin in available:
            return plugin
    raise FilmUnsupported(
        f"Reading DICOM compressed with {_codec_name(syntax)} needs an optional package: "
        "install the `dicom` extra (pip install 'vesalius[dicom]')."
    )


def _check_frames(dataset: Dataset, header: PixelHeader) -> None:
    for frame in islice(generate_frames(dataset.PixelData, number_of_frames=header.frames), header.frames):
        if header.syntax == uid.RLELossless:
            _check_run_lengths(frame, header)
        else:
            _check_codestream(frame, header)


def _check_codestream(frame: bytes, header: PixelHeader) -> None:
    stream = inspect(frame)
    if header.syntax == uid.JPEGExtended12Bit and stream.precision_bits != 8:
        raise FilmUnsupported(
            "This DICOM file is compressed with 12-bit JPEG Extended, which is not supported; "
            "export it uncompressed or as JPEG 2000."
        )
    if stream.process not in PROCESSES[header.syntax]:
        raise FilmUnreadable("The picture inside the DICOM file is compressed in another way than its header states.")
    claims = (stream.height, stream.width, stream.components)
    if claims != (header.rows, header.columns, header.samples) or stream.precision_bits > header.bits_allocated:
        raise FilmUnreadable("The compressed picture's size is not the one the DICOM header states; export it again.")


def _check_run_lengths(frame: bytes, header: PixelHeader) -> None:
    """A frame of PackBits segments may unpack to 64 times its size: where that could hurt, count before decoding."""
    if len(frame) * 64 > PACKBITS_UNCOUNTED_BYTES and _unpacked_bytes(frame[64:]) > header.frame_bytes + 1024:
        raise FilmUnreadable("The run-length encoded picture is larger than the header states; export the film again.")


def _unpacked_bytes(packed: bytes) -> int:
    """What a PackBits stream (PS3.5 Annex G) unpacks to, without unpacking it."""
    total = offset = 0
    while offset < len(packed):
        control = packed[offset]
        if control < 128:
            total += control + 1
            offset += control + 2
        else:
            total += 257 - control if control > 128 else 0
            offset += 2 if control > 128 else 1
    return total


def _whole(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = number(dataset, keyword)
    if value is None and default is not None:
        return default
    if value is None or value != int(value) or value < 0:
        raise FilmUnreadable(f"The DICOM field {keyword} is missing or is not a whole number; export the film again.")
    return int(value)


def _codec_name(syntax: UID) -> str:
    if str(syntax) in NEWER_CODECS:
        return NEWER_CODECS[str(syntax)]
    if syntax.is_private or syntax.name == str(syntax) or syntax.type != "Transfer Syntax":
        return "a private or unknown codec"
    return str(syntax.name).split("(")[0].strip()
