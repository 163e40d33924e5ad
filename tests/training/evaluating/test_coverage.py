"""The report on coverage: every label's figures, what is within two points, and no thresholds, no report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapters.card import AdapterCard, BaseRecord, Conformal
from foundation.errors import InvalidRequest
from training.evaluating.coverage import AS_FAR, AS_NEAR, ONE, OWN, RESPLIT, SERVED, folder_of, section
from training.measuring.report import Report, write_report
from training.trust.fit_conformal import with_thresholds
from training.trust.trust_metrics import Judged

LABELS = ("common", "rare")
CARD = AdapterCard("made", "classification", LABELS, BaseRecord("b", "f"), 1)


def judged(split: str, seed: int) -> Judged:
    random = np.random.default_rng(seed)
    truth = (random.random((120, 2)) < (0.5, 0.2)).astype(np.float32)
    chances = 1 / (1 + np.exp(-2 * truth - random.normal(-1, 1, (120, 2))))
    return Judged(split, LABELS, chances, chances, truth, [f"{split} {number // 2}" for number in range(120)])


def test_every_label_and_truth_has_its_line_and_figures(tmp_path: Path) -> None:
    val, test = judged("val", 0), judged("test", 1)
    card = with_thresholds(CARD, val, test, 0.8)
    found = section(card, val, test, splits=60, seed=0, resamples=20)
    written = write_report(Report("Coverage", {}, (found,)), tmp_path)
    lines = [line for line in written.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4  # once: the measures are not laid out again
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [["| common", "with it"], ["| rare", "with it"]]
    content = json.loads((tmp_path / "report.json").read_text())
    held = {(one["label"], one["group"], one["by"], one["name"]): one for one in content["sections"][0]["measures"]}
    for label in LABELS:
        for group in ("with it", "without it"):
            assert held[label, group, RESPLIT, OWN]["value"] == pytest.approx(0.8, abs=0.03)
            assert held[label, group, ONE, SERVED]["low"] is not None
            assert 0 <= held[label, group, RESPLIT, AS_FAR]["value"] <= 1
            assert 0 < held[label, group, RESPLIT, AS_NEAR]["value"] < 1
    in_card = {(one.label, one.name): one.value for one in card.metrics}
    assert held["rare", "with it", ONE, SERVED]["value"] == pytest.approx(
        in_card["rare", "coverage where present, by patient"], abs=1e-3
    )
    assert "of 4 (furthest:" in found.note
    total = sum(one["value"] for (*_, name), one in held.items() if name == AS_NEAR)
    assert f"{total:.1f} on a new split, on average" in found.note
    assert "stated: 0.8" in found.note.lower()


def test_an_adapter_without_thresholds_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no conformal thresholds"):
        section(replace(CARD, conformal=Conformal()), judged("val", 0), judged("test", 1), 2, 0, 2)


def test_a_name_is_of_the_library_and_a_folder_itself(tmp_path: Path) -> None:
    assert (folder_of("tb-screen") / "card.json").is_file()
    (tmp_path / "card.json").write_text("{}")
    assert folder_of(str(tmp_path)) == tmp_path
