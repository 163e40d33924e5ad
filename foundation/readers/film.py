"""The border between foreign files and our code: picks the reader, and turns whatever goes wrong into a FilmError."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from foundation.errors import FilmError, FilmTooLarge, FilmUnreadable, FilmUnsupported
from foundation.image import MedicalImage
from foundation.readers.dicom import read_dicom, stack_series
from foundation.readers.limits import Limits
from foundation.readers.nifti import read_nifti, read_nifti_gz
from foundation.readers.raster import read_jpeg, read_png
from foundation.readers.sniff import sniff
from foundation.readers.tiff import read_tiff

READERS: dict[str, Callable[[bytes, Limits], MedicalImage]] = {
    "dicom": read_dicom,
    "nifti": read_nifti,
    "gzip": read_nifti_gz,
    "png": read_png,
    "jpeg": read_jpeg,
    "tiff": read_tiff,
}
DEFAULT_LIMITS = Limits()
for _library in ("pydicom", "openjpeg", "tifffile", "nibabel", "PIL"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)  # their messages quote the file, and so may name a patient

Source = TypeVar("Source")


def read_film(data: bytes, limits: Limits = DEFAULT_LIMITS) -> MedicalImage:
    """Read one film or volume. Raises FilmUnreadable, FilmUnsupported or FilmTooLarge, and nothing else."""
    limits.check_bytes(len(data))
    return _guarded(READERS[sniff(data)], data, limits)


def read_series(files: Iterable[bytes], limits: Limits = DEFAULT_LIMITS) -> MedicalImage:
    """The DICOM files of one series, in any order -> one volume, sorted by position. Other files are passed over."""
    return _guarded(stack_series, _dicom_only(files, limits), limits)


def read_folder(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> MedicalImage:
    """A folder (looked through to the bottom) holding one DICOM series -> one volume; see `read_series`."""
    folder = Path(path)
    if not folder.is_dir():
        raise FilmUnreadable("There is no such folder to read films from.")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return read_series((_file_bytes(file, limits) for file in files), limits)


def _guarded(reader: Callable[[Source, Limits], MedicalImage], source: Source, limits: Limits) -> MedicalImage:
    """Libraries fail on broken files in ways beyond counting: all of them mean that the film is unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their texts may quote the file, and so a patient
            return reader(source, limits)
    except FilmError:
        raise
    except MemoryError:
        raise FilmTooLarge("The film does not fit into memory; send it smaller.") from None
    except Exception:  # the caller gets an answer of ours, whatever the file did to a library
        raise FilmUnreadable("The file is damaged or incomplete: its content contradicts its header.") from None


def _dicom_only(files: Iterable[bytes], limits: Limits) -> Iterator[bytes]:
    for data in files:
        limits.check_bytes(len(data))
        try:
            kind = sniff(data)
        except FilmError:
            continue  # a folder may hold notes, thumbnails or directories beside its slices
        if kind == "dicom":
            yield data


def _file_bytes(file: Path, limits: Limits) -> bytes:
    try:
        limits.check_bytes(file.stat().st_size)
        return file.read_bytes()
    except OSError:
        raise FilmUnsupported("A file of the folder cannot be opened; check that it may be read.") from None
