"""Films to break a decoder with: sound ones of every format, and what becomes of them under random damage.

Seeds are made in code or are the test files that pydicom and nibabel carry; mutant `number` is a pure function of the seeds
and the number, so that a finding can be made again.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SMALL_FILE = 120_000  # bytes; larger test files make the run slow and add little
_LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0x10000000)


def seeds() -> dict[str, bytes]:
    """name -> a whole film."""
    return {**_rasters(), **_dicoms(), **_niftis(), **_carried()}


def mutant(held: Mapping[str, bytes], number: int) -> tuple[str, bytes]:
    """(the seed's name, its bytes after one to four kinds of damage)."""
    chance = random.Random(number)
    name = chance.choice(sorted(held))
    data = bytearray(held[name])
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4))):
        chance.choice(_DAMAGES)(data, chance, held)
        if not data:
            data = bytearray(b"\0")
    return name, bytes(data)


def _flip(data: bytearray, chance: random.Random, _: Mapping[str, bytes]) -> None:
    for _flip in range(chance.choice((1, 2, 8, 64))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _flip_head(data: bytearray, chance: random.Random, _: Mapping[str, bytes]) -> None:
    """Formats say their sizes at the beginning."""
    for _flip in range(chance.choice((1, 2, 4, 16))):
        data[chance.randrange(min(len(data), 600))] = chance.randrange(256)


def _lie(data: bytearray, chance: random.Random, _: Mapping[str, bytes]) -> None:
    """A number of two or four bytes becomes one of those that hurt."""
    width, order = chance.choice((2, 4)), chance.choice(("little", "big"))
    at = chance.randrange(min(len(data), chance.choice((400, 2000, len(data)))))
    value = chance.choice(_LENGTHS) & ((1 << 8 * width) - 1)
    data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]


def _cut(data: bytearray, chance: random.Random, _: Mapping[str, bytes]) -> None:
    del data[chance.randrange(len(data)) :]


def _drop(data: bytearray, chance: random.Random, _: Mapping[str, bytes]) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice((1, 2, 4, 16, 256))]


def _repeat(data: bytearray, chance: random.Random, _: Mapping[str, bytes]) -> None:
    at, length = chance.randrange(len(data)), chance.choice((1, 8, 64, 1024))
    piece = bytes(data[at : at + length])
    data[at:at] = piece * chance.choice((1, 2, 50))


def _blank(data: bytearray, chance: random.Random, _: Mapping[str, bytes]) -> None:
    at, length = chance.randrange(len(data)), chance.choice((4, 64, 512))
    data[at : at + length] = bytes([chance.choice((0, 0xFF, 0x20))]) * len(data[at : at + length])


def _graft(data: bytearray, chance: random.Random, held: Mapping[str, bytes]) -> None:
    """The rest of one file behind the beginning of another."""
    other = held[chance.choice(sorted(held))]
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]


_Damage = Callable[[bytearray, random.Random, Mapping[str, bytes]], None]
_DAMAGES: tuple[_Damage, ...] = (_flip, _flip, _flip_head, _flip_head, _lie, _lie, _lie, _cut, _drop, _repeat, _blank, _graft)


# --- seeds -----------------------------------------------------------------------------------------------------------


def _grey(height: int = 40, width: int = 32, top: int = 255, dtype: type = np.uint8) -> npt.NDArray[Any]:
    ramp = np.linspace(0, top, height * width).reshape(height, width)
    return (ramp + np.random.default_rng(0).integers(0, 9, ramp.shape)).clip(0, top).astype(dtype)


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _rasters() -> dict[str, bytes]:
    grey, deep = Image.fromarray(_grey()), Image.fromarray(_grey(top=4000, dtype=np.uint16))
    colour = Image.merge("RGB", [grey, grey.rotate(90, expand=True).resize(grey.size), grey])
    return {
        "png grey": _saved(grey, "PNG"),
        "png 16 bit": _saved(deep, "PNG"),
        "png colour": _saved(colour, "PNG"),
        "png palette": _saved(colour.convert("P"), "PNG"),
        "png alpha": _saved(colour.convert("RGBA"), "PNG"),
        "jpeg grey": _saved(grey, "JPEG"),
        "jpeg progressive": _saved(colour, "JPEG", progressive=True),
        "jpeg inks": _saved(colour.convert("CMYK"), "JPEG"),
        "tiff plain": _saved(deep, "TIFF"),
        "tiff lzw": _saved(grey, "TIFF", compression="tiff_lzw"),
        "tiff deflated": _saved(grey, "TIFF", compression="tiff_adobe_deflate"),
        "tiff pages": _saved(grey, "TIFF", save_all=True, append_images=[grey, grey]),
    }


def _dicom(pixels: npt.NDArray[Any], syntax: str, compress: str = "") -> bytes:
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    film, item = Dataset(), Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[syntax, compress])
    film.Modality, film.PatientName = "DX", "Made^Up"
    film.Rows, film.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        film.NumberOfFrames = len(pixels)
    film.SamplesPerPixel, film.PhotometricInterpretation, film.PixelRepresentation = 1, "MONOCHROME2", 0
    film.BitsAllocated = film.BitsStored = pixels.dtype.itemsize * 8
    film.HighBit = film.BitsStored - 1
    film.WindowCenter, film.WindowWidth, film.RescaleSlope, film.RescaleIntercept = "128", "200", "1", "0"
    item.CodeValue, item.CodeMeaning = "1", "nested"
    inner = Dataset()
    inner.AnatomicRegionSequence = [item]
    film.AnatomicRegionSequence = [inner, item]
    film.private_block(0x0011, "MADE UP", create=True).add_new(0x01, "OB", b"\1" * 200)
    film.PixelData = pixels.tobytes()
    film["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    if compress:
        film.compress(compress)
    file = BytesIO()
    pydicom.dcmwrite(file, film, enforce_file_format=True)
    return file.getvalue()


def _dicoms() -> dict[str, bytes]:
    from pydicom import uid

    plain = uid.ExplicitVRLittleEndian
    return {
        "dicom explicit": _dicom(_grey(top=4000, dtype=np.uint16), plain),
        "dicom implicit": _dicom(_grey(), uid.ImplicitVRLittleEndian),
        "dicom deflated": _dicom(_grey(), uid.DeflatedExplicitVRLittleEndian),
        "dicom frames": _dicom(np.stack([_grey()] * 3), plain),
        "dicom rle": _dicom(_grey(), plain, uid.RLELossless),
        "dicom jpeg-ls": _dicom(_grey(), plain, uid.JPEGLSLossless),
        "dicom jpeg 2000": _dicom(_grey(), plain, uid.JPEG2000Lossless),
    }


def _niftis() -> dict[str, bytes]:
    import nibabel

    volume = np.stack([_grey(top=900, dtype=np.int16)] * 4, 2)
    plain = bytes(nibabel.Nifti1Image(volume, np.eye(4)).to_bytes())
    series = bytes(nibabel.Nifti1Image(np.stack([volume] * 2, 3), np.eye(4)).to_bytes())
    second = bytes(nibabel.Nifti2Image(volume, np.eye(4)).to_bytes())
    return {"nifti": plain, "nifti gz": gzip.compress(plain, mtime=0), "nifti series": series, "nifti 2": second}


def _carried() -> dict[str, bytes]:
    """pydicom's and nibabel's own test files that are small."""
    import nibabel
    import pydicom

    homes = {"pydicom": (pydicom, "data/test_files", (".dcm",)), "nibabel": (nibabel, "tests/data", (".nii", ".nii.gz"))}
    found = {}
    for title, (package, folder, endings) in homes.items():
        home = Path(str(package.__file__)).parent / folder
        for path in sorted(home.rglob("*")):
            if path.is_file() and path.name.endswith(endings) and path.stat().st_size <= SMALL_FILE:
                found[f"{title} {path.relative_to(home)}"] = path.read_bytes()
    return found
