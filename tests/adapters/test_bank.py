"""The bank equals the plain definition, row by row, for any mix of adapters, ranks and slots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.bank import AdapterBank
from adapters.fake import KINDS, FakeBackbone
from adapters.lora import LoraPair, LoraSpec, LoraWeights, load_weights, targets_from
from foundation.errors import AdapterRefused, InvalidRequest

SPECS = ((1, 2.0, False, 0), (4, 8.0, False, 1), (3, 5.0, True, 0))  # rank, alpha, rsLoRA, first block


def make_weights(backbone: FakeBackbone, number: int) -> LoraWeights:
    rank, alpha, use_rslora, first_block = SPECS[number]
    spec = LoraSpec(targets_from(backbone.lora_targets(), first_block), rank, alpha, use_rslora)
    generator = torch.Generator().manual_seed(100 + number)
    pairs = {}
    for name in spec.targets:
        linear = backbone.image_tower.get_submodule(name)
        a, b = (linear.weight.new_empty(size) for size in ((rank, linear.in_features), (linear.out_features, rank)))
        pairs[name] = LoraPair(a.detach().normal_(0, 0.2, generator=generator), b.detach().normal_(0, 0.2, generator=generator))
    return LoraWeights(spec, pairs)


def pixels(rows: int, size: int = 32) -> torch.Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(rows))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(kind: str) -> list[FakeBackbone]:
    """The base and, for each adapter, a backbone of its own through `lora.py`."""
    backbones = [FakeBackbone(kind) for _ in range(len(SPECS) + 1)]
    for number in range(len(SPECS)):
        load_weights(backbones[number + 1].image_tower, make_weights(FakeBackbone(kind), number))
    return backbones


@pytest.fixture(scope="module")
def banked(kind: str) -> Iterator[tuple[FakeBackbone, AdapterBank]]:
    backbone = FakeBackbone(kind)
    bank = AdapterBank(backbone)
    assert [bank.install(make_weights(backbone, number)) for number in range(len(SPECS))] == [1, 2, 3]
    yield backbone, bank
    bank.close()


@settings(max_examples=12, deadline=None)
@given(slots=st.lists(st.integers(0, len(SPECS)), min_size=1, max_size=5))
def test_mixed_batch_equals_each_row_alone(plain, banked, slots: list[int]) -> None:  # type: ignore[no-untyped-def]
    backbone, bank = banked
    x = pixels(len(slots), backbone.contract.size)
    with torch.inference_mode(), bank.rows(slots):
        mixed = backbone.encode_image(x)
    with torch.inference_mode():
        for row, slot in enumerate(slots):
            alone = plain[slot].encode_image(x[row : row + 1])
            torch.testing.assert_close(mixed.embedding[row], alone.embedding[0], atol=1e-5, rtol=0)
            largest = float(alone.tokens.abs().max())  # tokens are not normalised: a random tower's reach into the tens
            torch.testing.assert_close(mixed.tokens[row], alone.tokens[0], atol=2e-5 * largest, rtol=5e-4)


def test_adapters_differ_from_each_other(banked) -> None:  # type: ignore[no-untyped-def]
    backbone, bank = banked
    x = pixels(1, backbone.contract.size).expand(4, -1, -1, -1)
    with torch.inference_mode(), bank.rows([0, 1, 2, 3]):
        embedding = backbone.encode_image(x).embedding
    distance = torch.cdist(embedding, embedding) + torch.eye(4)
    assert distance.min() > 1e-3


def test_slot_zero_is_exactly_the_base(banked) -> None:  # type: ignore[no-untyped-def]
    backbone, bank = banked
    x = pixels(3, backbone.contract.size)
    with torch.inference_mode():
        base = backbone.encode_image(x).embedding
        with bank.rows([0, 0, 0]):
            assert torch.equal(backbone.encode_image(x).embedding, base)
        with bank.rows([2, 0, 1]):
            assert torch.equal(backbone.encode_image(x).embedding[1], base[1])
        assert torch.equal(backbone.encode_image(x).embedding, base)


def test_removal_frees_the_slot_and_leaves_the_others() -> None:
    backbone = FakeBackbone()
    bank = AdapterBank(backbone)
    first, second = make_weights(backbone, 0), make_weights(backbone, 2)
    x = pixels(1)
    base = backbone.encode_image(x).embedding
    bank.install(first)
    slot = bank.install(second)
    with bank.rows([slot]):
        before = backbone.encode_image(x).embedding
    bank.remove(1)
    with bank.rows([slot]):
        assert torch.equal(backbone.encode_image(x).embedding, before)
    with pytest.raises(InvalidRequest, match="slots \\[1\\]"), bank.rows([1]):
        pass
    assert bank.install(first) == 1
    bank.close()
    assert torch.equal(backbone.encode_image(x).embedding, base)


def test_wrong_row_count_and_foreign_weights_are_refused() -> None:
    backbone = FakeBackbone()
    bank = AdapterBank(backbone)
    slot = bank.install(make_weights(backbone, 0))
    with pytest.raises(InvalidRequest, match="2 rows"), bank.rows([slot]):
        backbone.encode_image(pixels(2))
    backbone.encode_image(pixels(2))  # the failed batch left nothing behind
    with pytest.raises(AdapterRefused, match="no layer"):
        bank.install(make_weights(FakeBackbone(depth=3), 0))
