"""NIfTI-1 and NIfTI-2 single files -> MedicalImage, lying as a radiologist looks at it.

Whatever way the voxels are stored, they are turned to the nearest axes so that slice k runs from feet to head, row j
from front to back and column i from the patient's right to the left: an axial slice is then seen as usual, the
patient's right on the viewer's left, the front on top. `affine` maps (column, row, slice) of the turned array to RAS
millimetres.

The header comes from nibabel; the voxels are taken from the bytes only after their number has been checked.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from foundation.errors import FilmUnreadable, FilmUnsupported
from foundation.image import MedicalImage
from foundation.readers.limits import Limits
from foundation.readers.sniff import is_nifti

RGB_CODE = 128
DATATYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
HEADER_BYTES = 2048  # enough to recognise any header
SLACK_BYTES = 65536  # extensions and padding a gzipped file may hold beyond its voxels


def read_nifti_gz(data: bytes, limits: Limits) -> MedicalImage:
    """A gzipped NIfTI file: the header is unpacked alone first, then no more than it announces."""
    head = _first_bytes(data)
    if not is_nifti(head):
        raise FilmUnsupported("This is a gzip file that holds no NIfTI volume; send the film itself.")
    header = _header(head)
    end = _data_offset(header) + _check_size(header, limits)
    return read_nifti(limits.inflate(data, raw=False, at_most=end + SLACK_BYTES), limits)


def read_nifti(data: bytes, limits: Limits) -> MedicalImage:
    header = _header(data)
    size_bytes = _check_size(header, limits)
    offset = _data_offset(header)
    if offset + size_bytes > len(data):
        raise FilmUnreadable("The NIfTI file is cut short: it holds fewer voxels than its header states.")
    voxels = _voxels(header, data, offset)
    return _to_image(header, voxels)


def _first_bytes(data: bytes) -> bytes:
    import zlib

    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, HEADER_BYTES)
    except zlib.error:
        raise FilmUnreadable("The gzip file is damaged; export or download it again.") from None


def _header(data: bytes) -> Any:
    if data[344:347] == b"ni1" or data[4:7] == b"ni2":
        raise FilmUnsupported("This is half of a NIfTI pair (.hdr and .img); send it as one .nii file.")
    kind = nib.Nifti2Header if data[4:7] == b"n+2" else nib.Nifti1Header
    return kind.from_fileobj(BytesIO(data))


def _data_offset(header: Any) -> int:
    offset = float(header["vox_offset"])
    if not math.isfinite(offset) or offset < int(header["sizeof_hdr"]) or offset != int(offset):
        raise FilmUnreadable("The NIfTI header does not say where the voxels begin.")
    return int(offset)


def _shape(header: Any) -> tuple[int, int, int]:
    """(i, j, k); trailing dimensions of 1 are dropped."""
    shape = tuple(int(size) for size in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise FilmUnsupported(
            f"The NIfTI file holds {len(shape)} dimensions (a time series or several contrasts); send one volume."
        )
    if len(shape) < 2 or min(shape) < 1:
        raise FilmUnreadable("The NIfTI header states an empty or flat volume.")
    return (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)


def _dtype(header: Any) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code == RGB_CODE:
        return np.dtype("u1")
    if code not in DATATYPES:
        raise FilmUnsupported("The NIfTI file's voxel type is not supported; save it as integers or float32.")
    return np.dtype(DATATYPES[code]).newbyteorder(header.endianness)


def _check_size(header: Any, limits: Limits) -> int:
    """Bytes of all voxels, from the header alone; each plane a viewer may be shown is checked."""
    shape = _shape(header)
    channels = 3 if int(header["datatype"]) == RGB_CODE else 1
    bytes_per_voxel = channels * max(_dtype(header).itemsize, 1)
    columns, rows, slices = shape
    limits.check_shape(slices, rows, columns, bytes_per_voxel)
    limits.check_shape(min(shape), sorted(shape)[1], max(shape), bytes_per_voxel)
    return columns * rows * slices * bytes_per_voxel


def _voxels(header: Any, data: bytes, offset: int) -> npt.NDArray[Any]:
    """(i, j, k) or, in colour, (i, j, k, 3), scaled; integers stay integers unless a scale applies."""
    shape, dtype = _shape(header), _dtype(header)
    count = math.prod(shape)
    if int(header["datatype"]) == RGB_CODE:
        return np.frombuffer(data, "u1", count * 3, offset).reshape((3, *shape), order="F").transpose(1, 2, 3, 0)
    stored = np.frombuffer(data, dtype, count, offset).reshape(shape, order="F")
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope, intercept) != (1.0, 0.0):
        return np.asarray(stored.astype(np.float64) * slope + intercept, dtype=np.float32)
    if dtype.kind == "f" or dtype.itemsize > 4:
        return stored.astype(np.float32)
    return stored.astype(dtype.newbyteorder("="))


def _to_image(header: Any, voxels: npt.NDArray[Any]) -> MedicalImage:
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise FilmUnreadable("The NIfTI header's orientation makes no sense (its axes are not independent).")
    stored_axes = io_orientation(affine)
    turn = ornt_transform(stored_axes, axcodes2ornt(("L", "P", "S")))
    turned = apply_orientation(voxels, turn)
    affine = affine @ inv_ornt_aff(turn, voxels.shape[:3])
    column_mm, row_mm, slice_mm = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    pixels = np.ascontiguousarray(np.moveaxis(turned, (0, 1, 2), (2, 1, 0)))
    stated = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return MedicalImage(
        pixels=pixels,
        spacing_mm=(slice_mm, row_mm, column_mm),
        affine=affine,
        value_range=_value_range(pixels),
        source_format="nifti",
        notes=() if stated else ("the file does not say how it lies in the patient: sides may be swapped",),
    )


def _value_range(pixels: npt.NDArray[Any]) -> tuple[float, float]:
    if pixels.dtype.kind in "ui":
        bounds = np.iinfo(pixels.dtype)
        return float(bounds.min), float(bounds.max)
    values = pixels[np.isfinite(pixels)]
    if values.size == 0:
        raise FilmUnreadable("The NIfTI volume holds no valid values.")
    return float(values.min()), float(values.max())
