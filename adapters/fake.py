"""FakeBackbone: a random backbone of a few blocks with the whole Backbone contract, for tests and dry runs.

Its image tower is a real one (`foundation/towers/`) around a tiny timm model; its text tower adds up words.
`make_fake_adapter` goes with it or with any other backbone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.card import AdapterCard, BaseRecord, Calibration, Conformal
from adapters.files import Adapter
from adapters.lora import LoraPair, LoraSpec, LoraWeights, targets_from
from adapters.tasks import account, anomaly, classification, fusion, fusion_head, segmentation
from adapters.tasks.tabular import TabularField
from foundation.backbone import Backbone, ImageFeatures
from foundation.decoder import Decoder
from foundation.preprocess import InputContract
from foundation.towers.rewriting import image_tower
from foundation.towers.tower import ImageTower

SIZE = 32
KINDS = ("vit", "visformer")
HeadT = TypeVar("HeadT", bound=nn.Module)


class FakeBackbone:
    """Deterministic in `kind` and `seed`; pixels are (B, 3, 32, 32) for "vit" and (B, 3, 64, 64) for the others."""

    def __init__(self, kind: str = "vit", seed: int = 0, depth: int = 2, embed_dim: int = 16) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trunk: Any = {"vit": _vit, "visformer": _visformer, "resnet": _resnet}[kind](depth)
            visual = _Visual(trunk, nn.Linear(trunk.num_features, embed_dim, bias=False)).eval().requires_grad_(False)
        self.image_tower: ImageTower = image_tower(visual).eval().requires_grad_(False)
        size = SIZE if kind == "vit" else 2 * SIZE
        self.contract = InputContract(size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), resize_mode="squash")
        self.embed_dim = embed_dim
        self.width = self.image_tower.width
        self.logit_scale = 10.0
        self.logit_bias = 0.0
        self.is_sigmoid = False
        self.fingerprint = hashlib.sha256(f"fake {kind} {seed} {depth} {embed_dim}".encode()).hexdigest()

    def encode_image(self, pixels: Tensor) -> ImageFeatures:
        output = self.image_tower(pixels)
        return ImageFeatures(F.normalize(output.embedding, dim=-1), output.tokens, output.levels, output.grid)

    def encode_text(self, strings: Sequence[str]) -> Tensor:
        return F.normalize(torch.stack([self._words(text) for text in strings]), dim=-1)

    def lora_targets(self) -> list[str]:
        return self.image_tower.lora_targets()

    def _words(self, text: str) -> Tensor:
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in text.lower().split()]
        rows = [np.random.default_rng(seed).standard_normal(self.embed_dim) for seed in seeds]
        return torch.tensor(np.sum(rows, axis=0), dtype=torch.float32)


def make_fake_adapter(
    backbone: Backbone | FakeBackbone,
    name: str,
    labels: Sequence[str],
    base: str = "fake",
    seed: int = 5,
    *,
    task: str = classification.TASK,
    first_block: int = 0,
) -> Adapter:
    """An adapter of random weights that changes what the backbone says, calibrated at random too.

    task: classification, segmentation, anomaly or fusion. first_block: where its LoRA begins, as in `targets_from`.
    """
    generator = torch.Generator().manual_seed(seed)
    spec = LoraSpec(targets_from(backbone.lora_targets(), first_block), rank=4, alpha=8)
    pairs = {}
    for target in spec.targets:
        linear = backbone.image_tower.get_submodule(target)
        assert isinstance(linear, nn.Linear)
        first = torch.randn(4, linear.in_features, generator=generator)
        pairs[target] = LoraPair(0.2 * first, 0.2 * torch.randn(linear.out_features, 4, generator=generator))
    head, options = _fake_head(backbone, task, labels, generator)
    steps = range(len(labels))
    card = AdapterCard(
        name=name,
        task=task,
        labels=tuple(labels),
        base=BaseRecord(base, backbone.fingerprint),
        preprocessing_version=1,
        head=options,
        thresholds=tuple(0.4 + 0.2 * (k % 2) for k in steps),
    )
    if task == classification.TASK:
        slopes, biases = tuple(1.5 / (k + 1) for k in steps), tuple(0.3 * k - 0.2 for k in steps)
        conformal = Conformal(0.9, tuple(0.2 + 0.3 * (k % 2) for k in steps), "val")
        card = replace(card, calibration=Calibration("platt", slopes, biases, "val", 10), conformal=conformal)
    return Adapter(card, LoraWeights(spec, pairs), head.state_dict())


def _fake_head(
    backbone: Backbone | FakeBackbone, task: str, labels: Sequence[str], generator: torch.Generator
) -> tuple[nn.Module, dict[str, Any]]:
    """A head of random weights for a task, and the options of it that a card records."""
    if task == classification.TASK:
        plain = classification.ClassificationHead(len(labels), backbone.embed_dim, backbone.width)
        for weight in (plain.text.weight, plain.query, plain.value):
            nn.init.normal_(weight, generator=generator)
        return plain, {"embed_dim": backbone.embed_dim, "width": backbone.width}
    size = backbone.contract.size
    with torch.no_grad():
        widths = [level.shape[1] for level in backbone.encode_image(torch.zeros(1, 3, size, size)).levels]
    if task == segmentation.TASK:
        shape = {"embed_dim": backbone.embed_dim, "level_widths": widths, "unions": {"chest": list(labels)}}
        return _drawn(segmentation.SegmentationHead(len(labels), backbone.embed_dim, widths), generator), shape
    if task == fusion.TASK:
        return _fake_fusion(backbone, widths, generator)
    last = (widths[-3], widths[-2], widths[-1])
    sizes = anomaly.HeadShape(backbone.embed_dim, last, findings=3, memory=12, memory_width=8, reference=20)
    head = _drawn(anomaly.AnomalyHead(sizes), generator)
    head.weights.abs_()
    head.reference.mul_(10)
    head.quantiles[:-1] = torch.linspace(-4, 4, anomaly.QUANTILES)
    head.quantiles[-1] = torch.linspace(0, 1, anomaly.QUANTILES)
    return head, {**vars(sizes), "level_widths": list(last), "places": list(sizes.places)}


def _fake_fusion(
    backbone: Backbone | FakeBackbone, widths: Sequence[int], generator: torch.Generator
) -> tuple[nn.Module, dict[str, Any]]:
    """Films, notes, and a laboratory of one number and one word."""
    shape = fusion_head.HeadShape(backbone.embed_dim, backbone.width, widths[-2], film=4, patch=3, note=3, width=8, members=2)
    modalities = ("film", "note", "laboratory")
    fields = (
        TabularField("crp", "laboratory", unit="mg/L", low=0.0, high=1000.0, seen_low=1.0, seen_high=300.0),
        TabularField("sex", "laboratory", kind="category", categories=("F", "M")),
    )
    head = _drawn(fusion_head.FusionHead(shape, modalities, fields), generator)
    head.spread.abs_().add_(0.5)
    head.knots.copy_(head.knots.sort(dim=1).values)
    subsets = account.subsets_of(modalities)
    methods = [one[0] if len(one) == 1 else fusion_head.JOINT for one in subsets]
    rules = [asdict(fusion.SubsetRule(one, method, one[0], 0.8, 0.1, 10)) for one, method in zip(subsets, methods, strict=True)]
    options = {"shape": asdict(shape), "modalities": list(modalities), "fields": [asdict(field) for field in fields]}
    return head, {**options, "rules": rules, "prior": -0.7, "conformal_absent": 0.3}


def _drawn(head: HeadT, generator: torch.Generator) -> HeadT:
    """Every tensor of the head at random, of a size that keeps outputs of ordinary size."""
    with torch.no_grad():
        for tensor in head.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim < 3 else 0.1))
    return head


def make_fake_chat_adapter(fingerprint: str, decoder: Decoder, name: str, seed: int = 5) -> Adapter:
    """A chat adapter of random weights that changes what the decoder says; `fingerprint` is the towers'."""
    generator = torch.Generator().manual_seed(seed)
    spec = LoraSpec(tuple(decoder.lora_targets()), rank=4, alpha=8)
    pairs = {}
    for target in spec.targets:
        linear = decoder.model.get_submodule(target)
        first = torch.randn(4, linear.in_features, generator=generator)
        pairs[target] = LoraPair(0.3 * first, 0.3 * torch.randn(linear.out_features, 4, generator=generator))
    card = AdapterCard(
        name=name,
        task="chat",
        labels=("pres",),
        base=BaseRecord("fake", fingerprint, decoder.fingerprint),
        preprocessing_version=1,
        head={"findings": "", "findings_digest": ""},
    )
    return Adapter(card, LoraWeights(spec, pairs), {})


class _Visual(nn.Module):
    """The two parts of open_clip's TimmModel that the towers read."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head


def _vit(depth: int) -> Any:
    return timm.create_model(
        "vit_tiny_patch16_224",
        class_token=False,
        global_pool="avg",
        img_size=SIZE,
        patch_size=8,
        depth=depth,
        embed_dim=32,
        num_heads=2,
        num_classes=0,
    )


def _visformer(depth: int) -> Any:
    return timm.create_model(
        "visformer_tiny",
        init_channels=8,
        img_size=2 * SIZE,
        depth=(1, 1, max(1, depth - 1)),
        embed_dim=32,
        num_heads=2,
        num_classes=0,
    )


def _resnet(depth: int) -> Any:
    """One narrow bottleneck a stage, whatever the depth."""
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, (1, 1, 1, 1), channels=(4, 8, 12, 16), stem_width=8, num_classes=0)
