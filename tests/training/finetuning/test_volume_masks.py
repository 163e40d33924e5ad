"""Volumes with masks: learnt slice by slice with neighbours, scored as volumes in millimetres."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from adapters.fake import FakeBackbone
from adapters.files import read_adapter
from adapters.tasks.segmentation import Segmenter
from foundation.errors import ManifestError
from training.evaluating.evaluate import evaluate
from training.evaluating.job import Options
from training.finetuning.finetune import finetune
from training.finetuning.recipe import LoraRecipe, PaceRecipe
from training.finetuning.segmentation.masks import MaskRecipe, load_volumes
from training.finetuning.segmentation.recipe import MaskDataRecipe, SegmentationRecipe, SegmentationViews
from training.manifests.manifest import load_manifest

MASKS = (MaskRecipe("mask", classes={"ball": [1], "rod": [2]}),)
RECIPE = SegmentationRecipe(
    "balls",
    data=MaskDataRecipe(masks=MASKS, context=1),
    lora=LoraRecipe(rank=2, alpha=4.0),
    views=SegmentationViews(blanks=0.0),
    training=PaceRecipe(epochs=4, batch_size=8, lora_rate=2e-3, head_rate=1e-2, patience=4),
)


def write(folder: Path, splits: tuple[str, ...] = ("train", "train", "train", "val", "test")) -> Path:
    """Volumes (i, j, k) of 40 x 32 x 6: a bright ball, and a rod that runs through all slices."""
    lines = []
    for number, split in enumerate(splits):
        random = np.random.default_rng(number)
        i, j, k = np.ogrid[:40, :32, :6]
        middle = random.integers((14, 14, 2), (28, 22, 4))
        ball = ((i - middle[0]) / 9) ** 2 + ((j - middle[1]) / 9) ** 2 + ((k - middle[2]) / 2) ** 2 <= 1
        rod = np.broadcast_to((i > 29) & (j > 21) & (k < 6), ball.shape) & ~ball
        data = (random.normal(100, 10, ball.shape) + 400 * ball + 800 * rod).astype(np.int16)
        affine = np.diag([2.0, 2.0, 5.0, 1.0])
        nib.save(nib.Nifti1Image(data, affine), folder / f"{number}.nii.gz")
        nib.save(nib.Nifti1Image((1 * ball + 2 * rod).astype(np.uint8), affine), folder / f"{number}-mask.nii.gz")
        line = {"image": f"{number}.nii.gz", "mask": f"{number}-mask.nii.gz", "split": split, "patient_id": f"p{number}"}
        lines.append(json.dumps(line | {"source": "made", "licence_class": "permissive"}))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_slices_are_films_of_their_own(tmp_path: Path) -> None:
    rows = load_manifest(write(tmp_path)).of("train")
    films = load_volumes(rows, MASKS, FakeBackbone("visformer").contract, 1)
    assert films.pixels.shape == (18, 64, 64, 3)
    assert films.masks.shape == (18, 2, 64, 64)
    assert films.rows[5] is films.rows[0]
    assert films.rows[6] is not films.rows[0]
    assert np.array_equal(films.pixels[1, ..., 0], films.pixels[0, ..., 1])  # the slice below
    assert np.array_equal(films.pixels[1, ..., 2], films.pixels[2, ..., 1])  # and the one above
    bright = films.pixels[..., 1][films.masks[:, 0] == 255].mean()
    assert bright > films.pixels[..., 1][(films.masks == 0).all(axis=1)].mean() + 50


def test_it_is_learnt_scored_and_reported_as_a_volume(tmp_path: Path) -> None:
    manifest, base = write(tmp_path), FakeBackbone("visformer")
    result = finetune("segmentation", manifest, tmp_path / "out", RECIPE, base, is_quiet=True, cpu=True)
    values = {(metric.name, metric.label, metric.split): metric.value for metric in result.card.metrics}
    assert values["dice", "rod", "test"] > 0.5
    assert ("hd95 (mm, pixels where spacing is unknown)", "rod", "test") in values
    assert Segmenter.open(result.card, read_adapter(result.adapter, base).head).context == 1
    opened = SimpleNamespace(backbone=base, folder=Path("no-such-folder"), passport=SimpleNamespace(licence=""))
    given = {"checkpoint": opened, "options": Options(resamples=10), "log": lambda _: None}
    report = evaluate(str(result.adapter), manifest, **given)
    assert report.find("dice", "rod", by="balls").value == pytest.approx(values["dice", "rod", "test"], abs=1e-3)


def test_a_mask_of_other_slices_names_the_row(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros((40, 32, 5), np.uint8), np.diag([2.0, 2.0, 5.0, 1.0])), tmp_path / "1-mask.nii.gz")
    with pytest.raises(ManifestError, match="row 2: the mask in 'mask' has 5 x 32 x 40 pixels, the film 6 x 32 x 40"):
        finetune("segmentation", manifest, tmp_path / "out", RECIPE, FakeBackbone("visformer"), is_quiet=True, cpu=True)
