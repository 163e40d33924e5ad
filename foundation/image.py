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
    """A grey-level window in stored physical units: from which value to black, from which to white.

    function (DICOM PS3.3 C.11.2.1.3): "linear_exact" is black at `center - width/2` and white at `center + width/2`;
    "linear" is DICOM's default, half a grey level narrower; "sigmoid" never quite saturates; "table" looks the value up
    in `table`, whose first entry belongs to the value `center - width/2`; values outside meet its first or last entry.
    """

    center: float
    width: float
    name: str = ""
    function: str = "linear_exact"
    table: tuple[int, ...] = field(default=(), repr=False)

    def brightness(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """0 (black) to 1 (white) for stored values; not yet clipped to that range."""
        if self.function == "table":
            return self._look_up(values)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.function == "sigmoid":
                return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - self.center) / self.width)))
            if self.function == "linear":
                if self.width <= 1.0:  # a threshold: the division below would be by zero
                    return np.asarray(values > self.center - 0.5, dtype=np.float64)
                return (values - (self.center - 0.5)) / (self.width - 1.0) + 0.5
            return (values - self.center) / self.width + 0.5

    def _look_up(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        levels = np.asarray(self.table, dtype=np.float64)
        low, high = float(levels.min()), float(levels.max())
        levels = (levels - low) / ((high - low) or 1.0)
        first = self.center - self.width / 2
        index = np.clip(np.nan_to_num(values - first), 0, len(levels) - 1)
        return levels[np.rint(index).astype(np.int64)]


@dataclass(frozen=True, eq=False)
class MedicalImage:
    """One film (Z = 1) or volume, photometry already resolved (larger values are brighter).

    pixels: (Z, H, W) or (Z, H, W, 3), native byte order; integers where the values are whole, else float32.
    spacing_mm: distance between neighbouring (slices, rows, columns); None where the format does not say, and 0.0 for
        the slices where it only says the others (a single projection film).
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
        """SHA-256 (hex) over a fixed-length header and the pixels.

        The header holds shape, dtype, spacing, value range, reader version and a digest of what chooses the default
        window (format, modality, presets), so that equal digests mean equal pictures for the model.
        """
        shape = (*self.pixels.shape, 0)[:4] if self.pixels.ndim == 3 else self.pixels.shape
        spacing = self.spacing_mm or (0.0, 0.0, 0.0)
        presets = [(w.center, w.width, w.function, w.table) for w in self.windows]
        photometry = hashlib.sha256(repr((self.source_format, self.modality, presets)).encode()).digest()
        dtype = self.pixels.dtype.str.encode()[:8]
        header = struct.pack("<4q8s3d2dq32s", *shape, dtype, *spacing, *self.value_range, READER_VERSION, photometry)
        whole = hashlib.sha256(header)
        whole.update(np.ascontiguousarray(self.pixels).reshape(-1).view(np.uint8).data)  # not copied: a film may be large
        return whole.hexdigest()
