"""Whatever the bytes: read_film returns a sane MedicalImage or raises a FilmError with a sentence of ours."""

from __future__ import annotations

import functools
import gzip
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from film_factory import PATIENT, dicom_dataset, dicom_film, gradient, nifti_film, picture, sample, to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid

from foundation.errors import FilmError
from foundation.preprocess import to_8bit
from foundation.readers import Limits, read_film

TIGHT = Limits(max_bytes=2**20, max_pixels=2**20, max_frames=64, max_inflated_bytes=2**24)
MUTANTS = 60


def _compressed(syntax: str) -> bytes:
    dataset = dicom_dataset(gradient(64, 64, top=255, dtype=np.uint8))
    dataset.compress(syntax)
    return to_bytes(dataset)


SEEDS = {
    "dicom": lambda: dicom_film(gradient(12, 12), WindowCenter=[1], WindowWidth=[2], RescaleSlope="2"),
    "dicom ct": lambda: sample("dicomdirtests/77654033/CT2/17106"),
    "dicom rle": lambda: _compressed(uid.RLELossless),
    "dicom jpeg-ls": lambda: _compressed(uid.JPEGLSLossless),
    "dicom jpeg 2000": lambda: _compressed(uid.JPEG2000Lossless),
    "dicom jpeg": lambda: sample("SC_rgb_small_odd_jpeg.dcm"),
    "dicom jpeg lossless": lambda: sample("SC_rgb_jpeg_gdcm.dcm"),
    "dicom deflated": lambda: sample("image_dfl.dcm"),
    "nifti": lambda: nifti_film(gradient(6, 6)[:, :, None].repeat(3, 2)),
    "nifti gz": lambda: gzip.compress(nifti_film(gradient(6, 6)[:, :, None]), mtime=0),
    "png": lambda: picture(gradient(12, 12), "PNG"),
    "jpeg": lambda: picture(gradient(16, 16, top=255, dtype=np.uint8), "JPEG"),
    "tiff": lambda: picture(gradient(12, 12), "TIFF"),
    "tiff lzw": lambda: picture(gradient(12, 12, top=255, dtype=np.uint8), "TIFF", compression="tiff_lzw"),
}


@functools.cache
def _seed(kind: str) -> bytes:
    return SEEDS[kind]()


def _must_be_sane(data: bytes) -> None:
    try:
        image = read_film(data, TIGHT)
    except FilmError as caught:
        error = caught
    else:
        assert image.pixels.ndim in (3, 4)
        assert min(image.pixels.shape) > 0
        assert to_8bit(image).dtype == np.uint8
        return
    assert error.message.endswith((".", ")"))
    assert PATIENT.split("^")[0] not in error.message
    assert error.__cause__ is None


def _mutate(data: bytes, chance: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat or drop a few bytes, mostly in the header, where it hurts."""
    mutant = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        reach = len(mutant) if chance.random() < 0.5 else min(len(mutant), 600)
        at = chance.randrange(max(1, reach))
        action = chance.choice(("flip", "set", "cut", "drop", "repeat", "number"))
        if action == "flip" and mutant:
            mutant[at] ^= 1 << chance.randrange(8)
        elif action == "set" and mutant:
            mutant[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif action == "number":
            mutant[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\x7f\0\0", b"\0\0\x01\0"))
        elif action == "cut":
            del mutant[chance.randrange(len(mutant) + 1) :]
        elif action == "drop":
            del mutant[at : at + chance.randrange(1, 9)]
        else:
            mutant[at:at] = mutant[at : at + chance.randrange(1, 9)]
        if not mutant:
            break
    return bytes(mutant)


@pytest.mark.parametrize("kind", sorted(SEEDS))
def test_mutated_files_never_raise_anything_else(kind: str) -> None:
    seed = _seed(kind)
    _must_be_sane(seed)
    read_film(seed, TIGHT)  # the unmutated file is good: otherwise the mutants would prove nothing
    chance = random.Random(kind)
    for _ in range(MUTANTS):
        _must_be_sane(_mutate(seed, chance))


@settings(max_examples=150, deadline=None)
@given(head=st.sampled_from(sorted(SEEDS)), cut=st.integers(0, 800), tail=st.binary(max_size=300))
def test_a_true_beginning_with_a_random_end(head: str, cut: int, tail: bytes) -> None:
    _must_be_sane(_seed(head)[:cut] + tail)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=600))
def test_random_bytes(data: bytes) -> None:
    _must_be_sane(data)


def test_the_name_of_a_file_means_nothing(tmp_path: Path) -> None:
    lie = tmp_path / "film.dcm"
    lie.write_bytes(picture(gradient(), "PNG"))
    assert read_film(lie.read_bytes()).source_format == "png"


def test_reading_loads_nothing_heavy() -> None:
    code = "import sys, foundation.readers, foundation.preprocess; print(*sys.modules)"
    root = Path(__file__).resolve().parents[2]
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "open_clip", "transformers", "monai", "torchvision"} & set(loaded.stdout.split())
