"""MedicalImage: its digest says everything that can change the picture a model sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from foundation.image import MedicalImage, Window

BASE = MedicalImage(pixels=np.arange(24, dtype=np.uint8).reshape(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": BASE.pixels.reshape(1, 6, 4)},
        {"pixels": BASE.pixels.astype(np.uint16)},
        {"pixels": BASE.pixels[::-1]},
        {"spacing_mm": (2.0, 1.0, 1.0)},
        {"value_range": (0.0, 4095.0)},
        {"windows": (Window(40.0, 400.0),)},
        {"windows": (Window(40.0, 400.0, function="sigmoid"),)},
        {"modality": "CT"},
        {"source_format": "nifti"},
    ],
)
def test_digest_changes_with_what_changes_the_picture(change: dict[str, object]) -> None:
    changed = dataclasses.replace(BASE, **change)  # type: ignore[arg-type]
    assert changed.digest != BASE.digest


def test_digest_is_of_values_not_of_memory_layout() -> None:
    other = dataclasses.replace(BASE, pixels=np.asfortranarray(BASE.pixels), notes=("read twice",))
    assert other.digest == BASE.digest
    assert len(BASE.digest) == 64


def test_shape_questions() -> None:
    assert BASE.is_volume
    assert BASE.slices == 2
    assert not BASE.is_color
    assert MedicalImage(pixels=np.zeros((1, 4, 4, 3), dtype=np.uint8)).is_color
