"""The pages say what the reports say, and their commands exist."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from app.cli import build_parser

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tables"] = module
    spec.loader.exec_module(module)
    return module


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


def test_every_command_of_the_readme_is_one() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"vesalius ([a-z][a-z-]+)", text))
    known = next(action.choices for action in build_parser()._actions if action.dest == "command")
    assert named
    assert known is not None
    assert named <= set(known)


def test_every_link_of_the_pages_leads_somewhere() -> None:
    for page in ("README.md", "MODEL_CARD.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page} points to {target}"
