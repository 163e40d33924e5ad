"""DICOM: one file -> MedicalImage, a series of files -> one volume.

    parse        bytes -> data set, its size checked, deflate capped
    pixels       data set -> stored values, through the codecs that have been tested
    photometry   stored values -> values in physical units, larger is brighter, and the windows to show them with
    geometry     spacing, affine, the order of frames
    vocabulary   modality, body part, view: closed lists, so that no free text (and so no patient) can pass
    series       many slices -> one volume

Nothing that could name a patient is ever read into a MedicalImage.
"""

from __future__ import annotations

from foundation.image import MedicalImage
from foundation.readers.dicom.series import read_slice, stack_series
from foundation.readers.limits import Limits

__all__ = ["read_dicom", "stack_series"]


def read_dicom(data: bytes, limits: Limits) -> MedicalImage:
    """One DICOM file; a multi-frame file becomes a volume, its frames sorted by position where they state one."""
    return read_slice(data, limits).image
