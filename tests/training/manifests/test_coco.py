"""COCO's annotations as a manifest: rows with labels, polygons and run lengths as masks, problems by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapters.tasks.rle import to_rle
from foundation.errors import ManifestError
from training.finetuning.segmentation.masks import MaskRecipe, check_masks, has_masks, read_masked
from training.manifests.manifest import load_manifest

LEFT = np.zeros((20, 30), bool)
LEFT[4:12, 2:9] = True
RECIPES = (MaskRecipe("coco", classes={"lung": [], "rib": [7]}),)


def coco(folder: Path, segmentation: Any = None, **changes: Any) -> Path:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((20, 30), 9, np.uint8)).save(folder / name)
    ring = [2, 4, 8, 4, 8, 11, 2, 11]
    held = {
        "images": [
            {"id": 1, "file_name": "a.png", "split": "train", "patient_id": "p1"},
            {"id": 2, "file_name": "b.png", "split": "val", "patient_id": "p2"},
        ],
        "categories": [{"id": 5, "name": "lung"}, {"id": 7, "name": "rib"}],
        "annotations": [{"image_id": 1, "category_id": 5, "segmentation": segmentation or [ring]}],
    } | changes
    (folder / "coco.json").write_text(json.dumps(held))
    return folder / "coco.json"


def test_rows_labels_and_polygons(tmp_path: Path) -> None:
    first, second = load_manifest(coco(tmp_path))
    assert (first.id, first.split, first.patient_id, first.labels) == ("1", "train", "p1", ("lung",))
    assert second.labels == ()
    assert second.is_labelled
    assert has_masks(second, RECIPES)  # known to hold nothing
    check_masks([first, second], RECIPES)
    _, masks = read_masked(first, RECIPES)
    assert np.array_equal(masks["lung"], LEFT)
    assert not masks["rib"].any()
    assert not read_masked(second, RECIPES)[1]["lung"].any()


def test_run_lengths(tmp_path: Path) -> None:
    [first, _] = load_manifest(coco(tmp_path, to_rle(LEFT)))
    assert np.array_equal(read_masked(first, RECIPES)[1]["lung"], LEFT)


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        (to_rle(LEFT[:10]), "row 1: a mask of 10 x 30 pixels lies on a film of 20 x 30: store it"),
        ({"size": [20, 30], "counts": [5]}, "row 1: The runs add up to 5 pixels"),
        ([[1, 2, 3]], "row 1: a segmentation must be polygons"),
    ],
)
def test_bad_shapes_name_the_row(tmp_path: Path, segmentation: Any, said: str) -> None:
    [first, _] = load_manifest(coco(tmp_path, segmentation))
    with pytest.raises(ManifestError, match=said):
        read_masked(first, RECIPES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"annotations": [{"image_id": 9, "category_id": 5}]}, "annotation 1 is of image 9, which is not listed"),
        ({"annotations": [{"image_id": 1, "category_id": 6}]}, "row 1: annotation 1 has the unknown category 6"),
        ({"images": [{"id": 1, "file_name": "c.png"}], "annotations": []}, "row 1: image 'c.png' is not a file"),
        ({"annotations": None}, "is not COCO's format"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        load_manifest(coco(tmp_path, **changes))
