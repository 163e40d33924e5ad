"""Readers: bytes -> MedicalImage, recognised by content, sizes checked in the header before anything is decoded.

    read_film(data)     one file: DICOM, NIfTI, PNG, JPEG or TIFF
    read_folder(path)   the DICOM files of one series -> one volume
    read_series(files)  the same, from bytes

Whatever the bytes, only a FilmError leaves this folder, and never a library's own text or a patient's identifiers.
"""

from __future__ import annotations

from foundation.readers.film import read_film, read_folder, read_series
from foundation.readers.limits import Limits

__all__ = ["Limits", "read_film", "read_folder", "read_series"]
