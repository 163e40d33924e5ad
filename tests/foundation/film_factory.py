"""Films made in code for the readers' tests: as bytes, in every format that is read."""

from __future__ import annotations

import gzip
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

Array = npt.NDArray[Any]
PATIENT = "Secretname^Person"


def sample(name: str) -> bytes:
    """One of pydicom's own test files; never downloaded."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"pydicom does not carry {name}"
    with open(path, "rb") as file:
        return file.read()


def gradient(height: int = 24, width: int = 32, top: int = 4095, dtype: type = np.uint16) -> Array:
    return np.linspace(0, top, height * width).astype(dtype).reshape(height, width)


def dicom_dataset(pixels: Array, syntax: str = ExplicitVRLittleEndian, **fields: Any) -> Dataset:
    """pixels: (H, W), (Z, H, W) with NumberOfFrames given, or (H, W, 3) with three samples."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = PATIENT, "SECRET-77", "19700101"
    dataset.Modality = "DX"
    bits = pixels.dtype.itemsize * 8
    colour = pixels.shape[-1] == 3 and "NumberOfFrames" not in fields
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
        if keyword == "BitsStored":
            dataset.HighBit = value - 1
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def dicom_film(pixels: Array, **fields: Any) -> bytes:
    return to_bytes(dicom_dataset(pixels, **fields))


def sequence_item(**fields: Any) -> Dataset:
    item = Dataset()
    for keyword, value in fields.items():
        setattr(item, keyword, value)
    return item


def nifti_film(voxels: Array, affine: Array | None = None, kind: type = nib.Nifti1Image, gz: bool = False) -> bytes:
    image = kind(voxels, np.eye(4) if affine is None else affine)
    data = bytes(image.to_bytes())
    return gzip.compress(data) if gz else data


def picture(pixels: Array | Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()
