"""A trained-looking adapter folder on the fake backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.fake import FakeBackbone, make_fake_adapter
from adapters.files import Adapter, write_adapter

LABELS = ("effusion", "mass")


def build_adapter(backbone: FakeBackbone, name: str = "chest-test", seed: int = 5) -> Adapter:
    return make_fake_adapter(backbone, name, LABELS, seed=seed)


@pytest.fixture
def backbone() -> FakeBackbone:
    return FakeBackbone()


@pytest.fixture
def folder(tmp_path: Path, backbone: FakeBackbone) -> Path:
    """A whole, valid adapter folder."""
    write_adapter(tmp_path / "chest-test", build_adapter(backbone))
    return tmp_path / "chest-test"


@pytest.fixture
def make_adapter() -> Callable[[FakeBackbone], Adapter]:
    return build_adapter
