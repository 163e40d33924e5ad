"""Reports: the same numbers for programs and for people, undefined ones said to be so."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest

from training.measuring.metrics import Estimate, ReliabilityCurve
from training.measuring.plots import interval_plot, reliability_plot
from training.measuring.report import Measure, Report, Section, Table, hardware, write_report

NAN = float("nan")


@pytest.fixture
def report() -> Report:
    measures = (
        Measure("auroc", Estimate(0.8123, 0.75, 0.86), "ours", "mass", films=40, positives=12),
        Measure("auroc", Estimate(0.7), "hog", "mass", films=40, positives=12),
        Measure("auroc", Estimate(NAN), "ours", "edema", films=40, positives=0),
    )
    words = Table(("film", "answer"), (("f1", "left | right"),))
    curve = ReliabilityCurve(np.array([0.1, 0.9]), np.array([0.2, 0.8]), np.array([5, 5]))
    plots = (
        reliability_plot("r.png", "calibration", {"mass": curve}),
        interval_plot("i.png", "AUROC", ["mass", "edema"], {"ours": [Estimate(0.8, 0.7, 0.9), Estimate(NAN)]}),
    )
    section = Section("films: telling apart", "How to read it.", measures, tables=(words,), plots=plots)
    return Report("Evaluation of ours", {"seed": 0, "data": {"split": "test", "films": 40}, "command": ""}, (section,))


def test_tables_have_a_row_a_label_and_a_column_a_model(report: Report) -> None:
    table = report.sections[0].layout()
    assert table is not None
    assert table.columns == ("label", "films", "positives", "ours AUROC", "hog AUROC")
    assert table.rows == (
        ("mass", "40", "12", "0.812 (0.750 to 0.860)", "0.700"),
        ("edema", "40", "0", "n/a", ""),
    )


def test_written_report_holds_everything(report: Report, tmp_path: Path) -> None:
    page = write_report(report, tmp_path / "out").read_text()
    assert "0.812 (0.750 to 0.860)" in page
    assert "left \\| right" in page  # a bar in a cell must not open a column
    assert "Research use only" in page
    assert "- **data**: split test; films 40" in page
    assert "command" not in page  # empty lines of the header are left out
    for name in ("r.png", "i.png"):
        assert f"]({name})" in page
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    first, _, undefined = content["sections"][0]["measures"]
    assert (first["value"], first["low"], first["high"], first["by"]) == (0.8123, 0.75, 0.86, "ours")
    assert undefined["value"] is None  # JSON has no NaN


def test_measures_are_found_by_name(report: Report) -> None:
    assert report.find("auroc", "mass", by="hog").value == 0.7
    with pytest.raises(KeyError):
        report.find("auroc", "nodule")


def test_hardware_names_the_machine_but_not_its_owner() -> None:
    line = hardware()
    assert "torch" in line
    assert "cores" in line
    assert platform.node() not in line
