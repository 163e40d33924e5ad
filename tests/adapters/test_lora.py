"""LoRA equals its definition in PEFT, merged and unmerged, and every adapter tensor learns."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from adapters.fake import FakeBackbone
from adapters.lora import (
    LoraPair,
    LoraSpec,
    LoraWeights,
    apply_lora,
    blocks_of,
    load_weights,
    lora_layers,
    read_weights,
    remove_lora,
    targets_from,
)
from foundation.errors import AdapterRefused, InvalidRequest


def pixels(rows: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def random_weights(backbone: FakeBackbone, spec: LoraSpec, seed: int = 2) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name in spec.targets:
        linear = backbone.image_tower.get_submodule(name)
        pairs[name] = LoraPair(
            0.2 * torch.randn(spec.rank, linear.in_features, generator=generator),
            0.2 * torch.randn(linear.out_features, spec.rank, generator=generator),
        )
    return LoraWeights(spec, pairs)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_equals_peft_and_merged(use_rslora: bool) -> None:
    ours, theirs = FakeBackbone(), FakeBackbone()
    spec = LoraSpec(tuple(ours.lora_targets()), rank=4, alpha=6.0, use_rslora=use_rslora)
    weights = random_weights(ours, spec)
    x = pixels()
    base = ours.encode_image(x).embedding
    layers = load_weights(ours.image_tower, weights)

    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=use_rslora, target_modules=list(spec.targets))
    model = peft.get_peft_model(theirs.image_tower, config).eval()
    state = {}
    for name, pair in weights.pairs.items():
        state[f"base_model.model.{name}.lora_A.weight"] = pair.A
        state[f"base_model.model.{name}.lora_B.weight"] = pair.B
    peft.set_peft_model_state_dict(model, state)

    adapted = ours.encode_image(x).embedding
    assert (adapted - base).abs().max() > 1e-2
    torch.testing.assert_close(adapted, theirs.encode_image(x).embedding, atol=1e-5, rtol=0)
    for layer in layers.values():
        layer.merge()
    torch.testing.assert_close(ours.encode_image(x).embedding, adapted, atol=1e-5, rtol=0)
    for layer in layers.values():
        layer.unmerge()
    torch.testing.assert_close(ours.encode_image(x).embedding, adapted, atol=1e-5, rtol=0)


def test_fresh_and_removed_are_the_base_exactly() -> None:
    backbone = FakeBackbone()
    x = pixels()
    names = list(backbone.image_tower.state_dict())
    base = backbone.encode_image(x).embedding
    layers = apply_lora(backbone.image_tower, LoraSpec(tuple(backbone.lora_targets()), rank=2))
    assert torch.equal(backbone.encode_image(x).embedding, base)
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B.normal_()
    assert not torch.equal(backbone.encode_image(x).embedding, base)
    remove_lora(backbone.image_tower)
    assert list(backbone.image_tower.state_dict()) == names
    assert torch.equal(backbone.encode_image(x).embedding, base)


def test_every_adapter_tensor_gets_a_gradient() -> None:
    backbone = FakeBackbone()
    layers = load_weights(backbone.image_tower, random_weights(backbone, LoraSpec(tuple(backbone.lora_targets()), rank=2)))
    backbone.encode_image(pixels()).tokens.square().mean().backward()
    for name, layer in layers.items():
        for factor in (layer.lora_A, layer.lora_B):
            assert factor.grad is not None, name
            assert factor.grad.abs().max() > 0, name
        assert layer.base.weight.grad is None, name


def test_weights_survive_a_round_trip_through_a_tower() -> None:
    backbone = FakeBackbone()
    spec = LoraSpec(targets_from(backbone.lora_targets(), -1), rank=3)
    weights = random_weights(backbone, spec)
    load_weights(backbone.image_tower, weights)
    copy = read_weights(backbone.image_tower, spec)
    assert set(lora_layers(backbone.image_tower)) == set(spec.targets)
    assert all(torch.equal(copy.pairs[name].A, weights.pairs[name].A) for name in spec.targets)
    assert all(torch.equal(copy.pairs[name].B, weights.pairs[name].B) for name in spec.targets)


def test_blocks_and_first_block() -> None:
    targets = FakeBackbone(depth=3).lora_targets()
    assert blocks_of(targets) == ("blocks.0", "blocks.1", "blocks.2")
    assert targets_from(targets, 2) == targets_from(targets, -1) == tuple(targets[8:])
    with pytest.raises(InvalidRequest, match="first_block is 3"):
        targets_from(targets, 3)


def test_refusals_name_what_is_wrong() -> None:
    tower = FakeBackbone().image_tower
    with pytest.raises(AdapterRefused, match=r"no layer 'blocks\.9\.attn\.qkv'"):
        apply_lora(tower, LoraSpec(("blocks.9.attn.qkv",)))
    with pytest.raises(AdapterRefused, match="Conv2d"):
        apply_lora(tower, LoraSpec(("visual.trunk.patch_embed.proj",)))
    with pytest.raises(InvalidRequest, match="rank"):
        LoraSpec(("a.b",), rank=0)
    assert not any(isinstance(module, nn.ModuleDict) for module in tower.modules())  # nothing was half applied


def test_changes_nothing_is_noticed() -> None:
    backbone = FakeBackbone()
    spec = LoraSpec(tuple(backbone.lora_targets()), rank=2)
    apply_lora(backbone.image_tower, spec)
    assert read_weights(backbone.image_tower, spec).changes_nothing
    assert not random_weights(FakeBackbone(), spec).changes_nothing
