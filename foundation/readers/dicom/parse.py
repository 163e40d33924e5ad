"""bytes -> pydicom Dataset: file header read strictly, deflated data sets inflated under a cap, non-films refused."""

from __future__ import annotations

import struct
from io import BytesIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from foundation.errors import FilmUnreadable, FilmUnsupported
from foundation.readers.dicom.pixels import choose_plugin
from foundation.readers.limits import Limits

PREAMBLE = b"\0" * 128 + b"DICM"
NOT_FILMS = {"SEG": "a segmentation", "RTDOSE": "a radiation dose map", "PR": "a display setting", "SR": "a report"}
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def parse(data: bytes, limits: Limits) -> Dataset:
    """The data set of a DICOM file that holds a picture; its `file_meta` names a transfer syntax."""
    if data[128:132] != b"DICM":
        data = PREAMBLE + data  # the sniffer saw the file header itself: only the preamble was stripped
    syntax, body_offset = _file_header(data)
    if syntax == DeflatedExplicitVRLittleEndian:
        data = _part10(limits.inflate(data[body_offset:], raw=True))
    else:
        choose_plugin(syntax)  # refused by name before anything else is read
    dataset = pydicom.dcmread(BytesIO(data))
    _require_film(dataset)
    return dataset


def _file_header(data: bytes) -> tuple[UID, int]:
    """The transfer syntax, and where the data set begins."""
    stream = BytesIO(data)
    stream.seek(len(PREAMBLE))
    header = read_dataset(
        stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, _vr, _length: tag.group != 2
    )
    syntax = header.get("TransferSyntaxUID")
    if not syntax:
        raise FilmUnreadable("The DICOM file header does not say how the film is encoded; export the film again.")
    if header.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise FilmUnsupported("This is a DICOM directory (DICOMDIR), not a film; send the image files it lists.")
    return UID(syntax), stream.tell()


def _part10(body: bytes) -> bytes:
    """An inflated data set under a file header of its own."""
    uid = str(ExplicitVRLittleEndian).encode() + b"\0" * (len(str(ExplicitVRLittleEndian)) % 2)
    return PREAMBLE + struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(uid)) + uid + body


def _require_film(dataset: Dataset) -> None:
    modality = str(dataset.get("Modality", ""))
    if modality in NOT_FILMS:
        raise FilmUnsupported(f"This DICOM file holds {NOT_FILMS[modality]}, not a film; send the images it is about.")
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        raise FilmUnsupported(
            "This DICOM file holds no picture (it may be a report, a plan or a waveform, or be cut short before its "
            "pixels); send the image files of the study."
        )
