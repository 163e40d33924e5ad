"""A trained-looking adapter folder on the fake backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters.card import AdapterCard, BaseRecord, Calibration
from adapters.fake import FakeBackbone
from adapters.files import Adapter, write_adapter
from adapters.lora import LoraPair, LoraSpec, LoraWeights
from adapters.tasks.classification import ClassificationHead

LABELS = ("effusion", "mass")


def build_adapter(backbone: FakeBackbone, name: str = "chest-test", seed: int = 5) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    spec = LoraSpec(tuple(backbone.lora_targets()), rank=4, alpha=8)
    pairs = {}
    for target in spec.targets:
        linear = backbone.image_tower.get_submodule(target)
        a = torch.randn(4, linear.in_features, generator=generator)
        pairs[target] = LoraPair(0.2 * a, 0.2 * torch.randn(linear.out_features, 4, generator=generator))
    head = ClassificationHead(len(LABELS), backbone.embed_dim, backbone.width)
    torch.nn.init.normal_(head.text.weight, generator=generator)
    card = AdapterCard(
        name=name,
        task="classification",
        labels=LABELS,
        base=BaseRecord("fake", backbone.fingerprint),
        preprocessing_version=1,
        head={"embed_dim": backbone.embed_dim, "width": backbone.width},
        calibration=Calibration("platt", (1.5, 0.5), (-0.2, 0.3), "val", 10),
        thresholds=(0.4, 0.6),
    )
    return Adapter(card, LoraWeights(spec, pairs), head.state_dict())


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
