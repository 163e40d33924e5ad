"""MedicalImage: a film or volume after reading, in physical units, without a patient's name.

Knows nothing of files (see `readers/`) nor of what a model eats (see `preprocess.py`).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

READER_VERSION = 1


@dataclass(frozen=True)
class Window:
    """A grey-level window in stored physical units: `center - width/2` shows black, `center + width/2` white."""

    center: float
    width: float
    name: str = ""


@dataclass(frozen=True, eq=False)
class MedicalImage:
    """One film (Z = 1) or volume, photometry already resolved (larger values are brighter).

    pixels: (Z, H, W) or (Z, H, W, 3); integers as stored, or float32 where a rescale applied.
    spacing_mm: distance between neighbouring (slices, rows, columns); None where the format does not say.
    affine: (4, 4) voxel index (column, row, slice) to patient RAS millimetres, where known.
    value_range: the full range the format's stored type can take (e.g. (0, 255)); used when there is no window.
    """

    pixels: npt.NDArray[np.generic]
    modality: str = ""  # DICOM code: "DX", "CR", "CT", "MR", ...; "" where unknown
    body_part: str = ""
    view: str = ""  # "PA", "AP", "LATERAL"; "" where unknown
    spacing_mm: tuple[float, float, float] | None = None
    affine: npt.NDArray[np.float64] | None = None
    windows: tuple[Window, ...] = ()
    value_range: tuple[float, float] = (0.0, 255.0)
    source_format: str = ""  # "dicom", "nifti", "png", "jpeg", "tiff"
    notes: tuple[str, ...] = field(default=())  # what reading had to decide, in words for a person

    @property
    def slices(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def is_volume(self) -> bool:
        return self.slices > 1

    @property
    def is_color(self) -> bool:
        return self.pixels.ndim == 4

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over a fixed-length header (shape, dtype, spacing, photometry, reader version) and the pixels."""
        shape = (*self.pixels.shape, 0)[:4] if self.pixels.ndim == 3 else self.pixels.shape
        spacing = self.spacing_mm or (0.0, 0.0, 0.0)
        header = struct.pack(
            "<4q8s3d2dq", *shape, self.pixels.dtype.str.encode()[:8], *spacing, *self.value_range, READER_VERSION
        )
        return hashlib.sha256(header + np.ascontiguousarray(self.pixels).tobytes()).hexdigest()
