"""The pointing game on maps and regions whose answer is known, and once on a tiny tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from foundation.tiny import make_tiny_checkpoint
from training.evaluating.explanations import (
    BASELINES,
    OTHER_LABEL,
    RANDOM_WEIGHTS,
    Pointed,
    boxed_films,
    peak_in,
    phantoms,
    point,
    randomised,
    rank_correlation,
    section,
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_checkpoint(str(make_tiny_checkpoint(tmp_path_factory.mktemp("pointing"), "open_clip"))).backbone


def region(size: int, rows: slice, columns: slice) -> np.ndarray:
    made = np.zeros((size, size), bool)
    made[rows, columns] = True
    return made


def test_a_peak_is_inside_or_it_is_not() -> None:
    relevance = torch.zeros(4, 4)
    relevance[3, 0] = 1.0  # lower left
    assert peak_in(relevance, region(64, slice(40, 64), slice(0, 20))) == 1.0
    assert peak_in(relevance, region(64, slice(0, 40), slice(0, 20))) == 0.0
    assert peak_in(torch.ones(4, 4), region(64, slice(0, 64), slice(0, 64))) == 0.0  # points nowhere


def test_rank_correlation() -> None:
    first = torch.arange(9.0).reshape(3, 3)
    assert rank_correlation(first, first**3) == pytest.approx(1.0)
    assert rank_correlation(first, -first) == pytest.approx(-1.0)
    assert rank_correlation(first, torch.zeros(3, 3)) == 0.0


def test_boxes_become_regions_of_the_films_size(tmp_path: Path) -> None:
    from training.manifests.manifest import load_manifest

    Image.fromarray(np.zeros((128, 128), np.uint8)).save(tmp_path / "film.png")
    boxes = '[{"label": "Infiltrate", "xywh_1024": [512, 256, 256, 128]}, {"label": "Mass", "xywh_1024": [0, 0, 16, 16]}]'
    row = f'{{"id": "1", "patient_id": "p", "split": "test", "image": "film.png", "labels": ["mass"], "boxes": {boxes}}}'
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    (film,) = boxed_films(load_manifest(tmp_path / "rows.jsonl").rows, 64)
    assert set(film.regions) == {"infiltration", "mass"}
    assert np.array_equal(film.regions["infiltration"], region(64, slice(16, 24), slice(32, 48)))


def test_baselines_checks_and_methods_stand_beside_each_other(backbone: Backbone) -> None:
    films = phantoms(4, 64)
    hits = point(backbone, films)
    count = sum(len(film.regions) for film in films)
    expected = {"dense", "gradcam", "layercam", "legrad"}
    checks = {f"{method}, {check}" for method in expected for check in (OTHER_LABEL, RANDOM_WEIGHTS)}
    assert set(hits.by) == expected | checks | set(BASELINES)
    assert all(len(values) == count for values in [*hits.by.values(), *hits.likeness.values()])
    made = section("t", films, hits, 20, 0)
    assert len(made.measures) == len(hits.by) + len(expected)


def test_the_baselines_are_what_they_say(backbone: Backbone) -> None:
    mask = region(64, slice(30, 40), slice(30, 40))
    films = [Pointed(np.full((64, 64), 90, np.uint8), {"mass": mask}, str(k)) for k in range(3)]
    hits = point(backbone, films)
    assert hits.by["centre"] == [1.0] * 3
    assert hits.by["random place"] == pytest.approx([100 / 4096] * 3)
    assert hits.by["usual place"] == [1.0] * 3


def test_random_weights_leave_the_tower_itself_alone(backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    blind = randomised(backbone, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    changed = [n for n, p in blind.image_tower.named_parameters() if p.ndim > 1 and torch.equal(p, before[f"image_tower.{n}"])]
    assert not changed
