"""A backbone small enough for tests: a timm ViT of two blocks and a text tower that hashes words."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class FakeContract:
    """The fields of InputContract that training reads."""

    size: int = 32
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    interpolation: str = "bicubic"
    resize_mode: str = "squash"
    version: int = 1


@dataclass(frozen=True)
class FakeFeatures:
    embedding: Tensor
    tokens: Tensor


class FakeTower(nn.Module):
    def __init__(self, depth: int, embed_dim: int) -> None:
        super().__init__()
        self.trunk = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            patch_size=8,
            depth=depth,
            embed_dim=32,
            num_heads=2,
            num_classes=0,
            class_token=False,
            global_pool="avg",
        )
        self.head = nn.Linear(32, embed_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.trunk(pixels))


class FakeBackbone:
    """The Backbone contract over `FakeTower`, deterministic in `seed`."""

    def __init__(self, seed: int = 0, depth: int = 2, embed_dim: int = 16) -> None:
        torch.manual_seed(seed)
        self.image_tower = FakeTower(depth, embed_dim).eval()
        self.contract = FakeContract()
        self.embed_dim = embed_dim
        self.width = 32
        self.logit_scale = 10.0
        self.logit_bias = 0.0
        self.is_sigmoid = False
        self.fingerprint = hashlib.sha256(f"fake {seed} {depth}".encode()).hexdigest()

    def encode_image(self, pixels: Tensor) -> FakeFeatures:
        tokens = self.image_tower.trunk.forward_features(pixels)
        pooled = self.image_tower.trunk.forward_head(tokens)
        return FakeFeatures(F.normalize(self.image_tower.head(pooled), dim=-1), tokens)

    def encode_text(self, texts: list[str]) -> Tensor:
        return F.normalize(torch.stack([self._words(text) for text in texts]), dim=-1)

    def lora_targets(self) -> list[str]:
        names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        depth = len(self.image_tower.trunk.blocks)
        return [f"trunk.blocks.{block}.{name}" for block in range(depth) for name in names]

    def _words(self, text: str) -> Tensor:
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in text.lower().split()]
        rows = [np.random.default_rng(seed).standard_normal(self.embed_dim) for seed in seeds]
        return torch.tensor(np.sum(rows, axis=0), dtype=torch.float32)
