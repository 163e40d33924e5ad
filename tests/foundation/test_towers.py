"""Towers: which block a name belongs to, and where levels are taken."""

from __future__ import annotations

import pytest

from foundation.towers.tower import block_index, quarter_taps


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("blocks.3.attn.qkv", 3),
        ("base_model.model.blocks.11.mlp.fc1.lora_A.weight", 11),
        ("encoder.transformer.encoder.layer.2.output.dense", 2),
        ("encoder.transformer.resblocks.0.attn.proj", 0),
        ("visual.head.proj", -1),
    ],
)
def test_block_index(name: str, index: int) -> None:
    assert block_index(name) == index


def test_taps_fall_on_the_quarters() -> None:
    assert quarter_taps(12) == (2, 5, 8, 11)
    assert quarter_taps(6) == (1, 2, 4, 5)
    assert quarter_taps(2) == (0, 0, 1, 1)
