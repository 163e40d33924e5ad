"""The pages say what the reports say. What they name: test_page_names.py."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from app.cli import build_parser

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script("tables")


@pytest.fixture(scope="module")
def remake() -> ModuleType:
    return script("remake")


@pytest.mark.parametrize("page", ["README.md", "MODEL_CARD.md"])
def test_every_figure_is_the_reports(page: str, tables: ModuleType) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.BLOCK.search(text)
    assert tables.fill(text) == text, "run `python docs/tables.py`"


def test_a_changed_figure_would_be_seen(tables: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = tables.BLOCK.search(text)
    assert block is not None
    tampered = text.replace(block[0], re.sub(r"0\.\d\d", "0.99", block[0], count=1))
    assert tampered != text
    assert tables.fill(tampered) != tampered


def test_everything_bundled_can_be_made_anew(remake: ModuleType) -> None:
    parser, parts = build_parser(), remake.parts("rows.jsonl")
    for part in parts:
        if part.command[0] == "vesalius":
            assert parser.parse_args(part.command[1:]).command == part.command[1]
    bundled = {card.parent.name for card in (ROOT / "adapters" / "library").glob("*/card.json")}
    assert {part.kept.name for part in parts if part.kept.parent.name == "library"} == bundled
    reported = {report.parent.name for report in (ROOT / "docs" / "results").glob("*/report.json")}
    assert reported <= {part.kept.name for part in parts if part.kept.parent.name == "results"}


def test_a_report_is_kept_without_its_pictures(remake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remake, "RESULTS", tmp_path / "results")
    made = tmp_path / "made"
    made.mkdir()
    for name in ("report.json", "report.md", "worst.png"):
        (made / name).write_text(name)
    remake.put(made, tmp_path / "results" / "lungs")
    assert sorted(path.name for path in (tmp_path / "results" / "lungs").iterdir()) == ["report.json", "report.md"]
    (tmp_path / "library" / "lungs").mkdir(parents=True)
    (tmp_path / "library" / "lungs" / "old.safetensors").touch()
    remake.put(made, tmp_path / "library" / "lungs")
    assert sorted(path.name for path in (tmp_path / "library" / "lungs").iterdir()) == ["report.json", "report.md", "worst.png"]


def test_a_part_that_failed_is_said_and_puts_nothing_in_place(
    remake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remake, "WORK", tmp_path)
    part = remake.Part("broken", ("vesalius", "no-such-command"), tmp_path / "made", tmp_path / "kept")
    with pytest.raises(SystemExit, match=r"broken ended with 2; what it said is in .*broken\.log"):
        part.run()
    assert "no-such-command" in (tmp_path / "broken.log").read_text()
    assert not (tmp_path / "kept").exists()
