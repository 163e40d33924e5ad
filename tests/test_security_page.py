"""The security page names the tests that prove it: each must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:foundation|adapters|serving|training|app)/test_\w+\.py)(?:::(\w+))?`", PAGE)))
CLASSES = ("SSRF", "pickle", "remote code", "decompression bombs", "error leakage", "cache crossing", "Gradio")


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_named_test_exists(file: str, test: str) -> None:
    text = (TESTS / file).read_text(encoding="utf-8")
    assert not test or f"def {test}(" in text, f"{file} has no {test}"


def test_every_advisory_class_is_named_with_its_proof() -> None:
    table = PAGE.partition("## Advisory classes")[2].partition("##")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    for word in CLASSES:
        assert any(word in line.split("|")[1] and "::test_" in line for line in lines), word
