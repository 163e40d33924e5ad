"""Baselines: they learn what is there to learn, and nothing is computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.errors import InvalidRequest
from training.manifests.manifest import load_manifest
from training.measuring import baselines
from training.measuring.baselines import SplitRows, load_films, run_baseline, truth_of
from training.measuring.metrics import auroc

LABELS = ("effusion", "mass")


def quiet(_: str) -> None:
    """No report."""


@pytest.fixture
def rows(made_films: Any) -> SplitRows:
    manifest = load_manifest(made_films(24))
    return SplitRows(manifest.of("train"), manifest.of("val"), manifest.of("test"))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the films were read again")


def test_hog_learns_a_bright_corner_and_is_kept(rows: SplitRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_baseline("hog", rows, LABELS, tmp_path / "kept", report=quiet)
    truth = truth_of(rows.test, LABELS)
    assert all(auroc(first.of(label), truth[:, k])[0] > 0.9 for k, label in enumerate(LABELS))
    assert ((first.probabilities >= 0) & (first.probabilities <= 1)).all()
    monkeypatch.setattr(baselines, "load_films", refuse)
    again = run_baseline("hog", rows, LABELS[::-1], tmp_path / "kept", report=quiet)
    assert np.array_equal(again.of("mass"), first.of("mass"))
    assert again.note == first.note
    other = SplitRows(rows.train[:-1], rows.val, rows.test)
    with pytest.raises(AssertionError, match="read again"):
        run_baseline("hog", other, LABELS, tmp_path / "kept", report=quiet)


def test_hog_adds_a_label_without_disturbing_the_others(rows: SplitRows, tmp_path: Path) -> None:
    alone = run_baseline("hog", rows, ("mass",), tmp_path, report=quiet)
    both = run_baseline("hog", rows, LABELS, tmp_path, report=quiet)
    fresh = run_baseline("hog", rows, LABELS, tmp_path / "fresh", report=quiet)
    assert np.array_equal(alone.of("mass"), both.of("mass"))
    assert np.allclose(both.probabilities, fresh.probabilities)


def test_cnn_learns_repeats_and_stops_in_time(rows: SplitRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "SIZE", 32)
    films = {id(part): load_films(part, 32) for part in (rows.train, rows.val, rows.test)}
    monkeypatch.setattr(baselines, "load_films", lambda part: films[id(part)])
    first = run_baseline("cnn", rows, LABELS, tmp_path / "a", epochs=4, report=quiet)
    again = run_baseline("cnn", rows, LABELS, tmp_path / "b", epochs=4, report=quiet)
    assert np.array_equal(first.probabilities, again.probabilities)  # the seed decides, nothing else
    assert auroc(first.of("effusion"), truth_of(rows.test, LABELS)[:, 0])[0] > 0.7
    said: list[str] = []
    short = run_baseline("cnn", rows, LABELS, tmp_path / "c", epochs=4, time_limit_s=0.0, report=said.append)
    assert "1 of 4 epochs" in short.note
    assert any("time limit" in line for line in said)
    assert not list(tmp_path.glob("c/*"))  # what was cut short is not kept as if it were whole
    monkeypatch.setattr(baselines, "load_films", refuse)
    kept = run_baseline("cnn", rows, LABELS, tmp_path / "a", epochs=4, report=quiet)
    assert np.array_equal(kept.probabilities, first.probabilities)


def test_what_cannot_be_learnt_is_refused(rows: SplitRows, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="unknown baseline 'svm': known are hog, cnn"):
        run_baseline("svm", rows, LABELS, tmp_path)
    with pytest.raises(InvalidRequest, match="no training row has the label 'hernia'"):
        run_baseline("hog", rows, ("hernia",), tmp_path)


def test_films_are_read_as_grey_squares(rows: SplitRows) -> None:
    films = load_films(rows.test[:3], 32)
    assert films.shape == (3, 32, 32)
    assert films.dtype == np.uint8
    assert films[0, 24:, :10].mean() > films[1, 24:, :10].mean() + 80  # the first has the effusion
