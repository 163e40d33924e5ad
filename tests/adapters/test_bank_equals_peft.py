"""Bank = plain LoRA = merged = a mixed batch in peft, and mixed = each row alone: random ranks, layers, mixes, orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import peft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.bank import AdapterBank
from adapters.fake import FakeBackbone
from adapters.lora import LoraPair, LoraSpec, LoraWeights, load_weights, remove_lora, targets_from


@dataclass(frozen=True)
class Made:
    rank: int
    alpha: int
    use_rslora: bool
    first_block: int
    seed: int

    def weights(self, backbone: FakeBackbone) -> LoraWeights:
        targets = targets_from(backbone.lora_targets(), self.first_block)
        generator = torch.Generator().manual_seed(self.seed)
        pairs = {}
        for name in targets:
            linear = backbone.image_tower.get_submodule(name)
            a = 0.2 * torch.randn(self.rank, linear.in_features, generator=generator)
            pairs[name] = LoraPair(a, 0.2 * torch.randn(linear.out_features, self.rank, generator=generator))
        return LoraWeights(LoraSpec(targets, self.rank, self.alpha, self.use_rslora), pairs)


adapters = st.builds(
    Made, st.integers(1, 20), st.sampled_from([1, 4, 16]), st.booleans(), st.integers(0, 1), st.integers(0, 99)
)


@settings(max_examples=10, deadline=None)
@given(st.lists(adapters, min_size=1, max_size=4), st.lists(st.integers(0, 4), min_size=1, max_size=8), st.randoms())
def test_all_ways_agree(made: list[Made], mix: list[int], order: Any) -> None:
    backbone = FakeBackbone()
    weights = [one.weights(backbone) for one in made]
    rows = [number if number <= len(made) else 0 for number in mix]  # 0 is the base
    pixels = torch.randn(len(rows), 3, 32, 32, generator=torch.Generator().manual_seed(len(rows)))
    bank = AdapterBank(backbone)
    installed = list(range(len(made)))
    order.shuffle(installed)
    slots = {0: 0} | {number + 1: bank.install(weights[number]) for number in installed}
    with torch.inference_mode(), bank.rows([slots[row] for row in rows]):
        mixed = backbone.image_tower(pixels).tokens
    bank.close()
    _close(mixed, _one_by_one(rows, weights, pixels, merges=False))
    _close(mixed, _one_by_one(rows, weights, pixels, merges=True))
    _close(mixed, _in_peft(rows, weights, pixels))


def _one_by_one(rows: list[int], weights: list[LoraWeights], pixels: Tensor, *, merges: bool) -> Tensor:
    backbone, found = FakeBackbone(), []
    for number, row in enumerate(rows):
        if row:
            for layer in load_weights(backbone.image_tower, weights[row - 1]).values():
                if merges:
                    layer.merge()
        with torch.inference_mode():
            found.append(backbone.image_tower(pixels[number : number + 1]).tokens)
        remove_lora(backbone.image_tower)
    return torch.cat(found)


def _in_peft(rows: list[int], weights: list[LoraWeights], pixels: Tensor) -> Tensor:
    names = [f"number{number}" for number in range(len(weights))]
    model: Any = None
    for name, one in zip(names, weights, strict=True):
        spec = one.spec
        config = peft.LoraConfig(
            r=spec.rank, lora_alpha=int(spec.alpha), target_modules=list(spec.targets), use_rslora=spec.use_rslora
        )
        if model is None:
            model = peft.get_peft_model(FakeBackbone().image_tower, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        for target, pair in one.pairs.items():
            layer = model.base_model.model.get_submodule(target)
            layer.lora_A[name].weight.data.copy_(pair.A)
            layer.lora_B[name].weight.data.copy_(pair.B)
    model.eval()
    with torch.inference_mode():
        told = model(pixels, adapter_names=[names[row - 1] if row else "__base__" for row in rows])
    tokens: Tensor = told.tokens
    return tokens


def _close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, atol=2e-5 * float(two.abs().max()), rtol=5e-4)
