"""Fixtures shared by all tests: no network, and the shared chest films where they are present."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["VESALIUS_HOME"] = tempfile.mkdtemp(prefix="vesalius-home-")  # never the keys and the log of who runs the tests

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def chest_data() -> Path:
    """The folder of real chest films (`manifest.jsonl`, `images/`), never part of this repository."""
    folder = Path(os.environ.get("VESALIUS_DATA", REPOSITORY.parent / "shared" / "data" / "chest"))
    if not (folder / "manifest.jsonl").is_file():
        pytest.skip(f"real films not present at {folder}; set VESALIUS_DATA to their folder")
    return folder
