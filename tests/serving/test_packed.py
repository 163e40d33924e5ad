"""Packed linear layers answer as the plain ones do, to the bit, and step aside for gradients and adapters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from adapters.bank import AdapterBank
from adapters.lora import LoraPair, LoraSpec, LoraWeights
from serving.packed import pack_linears

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="packing is for processors that multiply in bfloat16"
)


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 192), nn.GELU(), nn.Linear(192, 64, bias=False)).to(torch.bfloat16).eval()


@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 197, 64), (8, 7, 7, 64)])
def test_equal_to_the_plain_layers(plain: nn.Module, shape: tuple[int, ...]) -> None:
    packed = copy.deepcopy(plain)
    assert pack_linears(packed) == 2
    x = torch.randn(shape).to(torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(packed(x), plain(x))


def test_equal_where_the_input_does_not_lie_in_order(plain: nn.Module) -> None:
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    turned = torch.randn(64, 5).to(torch.bfloat16).T
    with torch.inference_mode():
        assert torch.equal(packed(turned), plain(turned))


def test_names_stay_and_weights_are_shared(plain: nn.Module) -> None:
    packed = copy.deepcopy(plain)
    weights = dict(packed.named_parameters())
    pack_linears(packed)
    assert list(packed.state_dict()) == list(plain.state_dict())
    assert all(one is weights[name] for name, one in packed.named_parameters())


def test_gradients_go_through_the_plain_layer(plain: nn.Module) -> None:
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    given = [torch.ones(2, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    for module, x in zip((plain, packed), given, strict=True):
        module(x).float().sum().backward()
    grads = [x.grad for x in given if x.grad is not None]
    assert len(grads) == 2
    assert torch.equal(*grads)
    assert grads[0].abs().sum() > 0


def test_float32_stays_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(8, 8))
    assert pack_linears(module) == 0
    assert type(module[0]) is nn.Linear


def test_an_adapter_over_packed_layers_is_the_one_over_plain_layers(plain: nn.Module) -> None:
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    pair = LoraPair(torch.randn(4, 64).to(torch.bfloat16), torch.randn(192, 4).to(torch.bfloat16))
    weights = LoraWeights(LoraSpec(("0",), rank=4), {"0": pair})
    x = torch.randn(3, 5, 64).to(torch.bfloat16)
    answers = []
    for module in (plain, packed):
        bank = AdapterBank.over(module)
        slot = bank.install(weights)
        with torch.inference_mode(), bank.rows([0, slot, 0]):
            answers.append(module(x))
        bank.close()
    assert torch.equal(*answers)
    with torch.inference_mode():
        assert not torch.equal(answers[0][1], packed(x)[1])
        assert torch.equal(answers[0][::2], packed(x)[::2])
