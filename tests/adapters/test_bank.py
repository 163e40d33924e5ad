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
from foundation.errors import AdapterRefused, InvalidRequest, Overloaded

# rank, alpha, rsLoRA, first block; ranks of three classes
SPECS = ((1, 2.0, False, 0), (4, 8.0, False, 1), (3, 5.0, True, 0), (12, 6.0, False, 0), (20, 9.0, True, 1))


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
    assert [bank.install(make_weights(backbone, number)) for number in range(len(SPECS))] == [1, 2, 3, 4, 5]
    yield backbone, bank
    bank.close()


@settings(max_examples=25, deadline=None)
@given(slots=st.lists(st.integers(0, len(SPECS)), min_size=1, max_size=7))
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
    count = len(SPECS) + 1
    x = pixels(1, backbone.contract.size).expand(count, -1, -1, -1)
    with torch.inference_mode(), bank.rows(list(range(count))):
        embedding = backbone.encode_image(x).embedding
    distance = torch.cdist(embedding, embedding) + torch.eye(count)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_among_adapters_is_the_base_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    backbone = FakeBackbone(kind)
    backbone.image_tower.to(dtype)
    bank = AdapterBank(backbone)
    slots = [bank.install(make_weights(backbone, number)) for number in (1, 3)]
    x = pixels(7, backbone.contract.size).to(dtype)
    with torch.inference_mode():
        base = backbone.image_tower(x)
        with bank.rows([0, slots[0], 0, slots[1], slots[0], 0, 0]):
            mixed = backbone.image_tower(x)
    for row in (0, 2, 5, 6):
        assert torch.equal(mixed.embedding[row], base.embedding[row])
        assert torch.equal(mixed.tokens[row], base.tokens[row])
    for row in (1, 3, 4):
        assert not torch.equal(mixed.tokens[row], base.tokens[row])


def test_gradients_flow_through_a_batch_with_adapters() -> None:
    """Explanations differentiate what an adapter says with respect to the film."""
    backbone, alone = FakeBackbone(), FakeBackbone()
    bank = AdapterBank(backbone)
    slot = bank.install(make_weights(backbone, 3))
    load_weights(alone.image_tower, make_weights(alone, 3))
    found = []
    for tower, slots in ((backbone, [0, slot]), (alone, None)):
        x = pixels(2).requires_grad_()
        if slots:
            with bank.rows(slots):
                tower.encode_image(x).embedding[1, 0].backward()
        else:
            tower.encode_image(x).embedding[1, 0].backward()
        found.append(x.grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-4)
    assert found[0][0].abs().max() == 0


def test_capacity_counts_bytes_as_padded_and_refuses_what_passes_it() -> None:
    backbone = FakeBackbone()
    small, large = make_weights(backbone, 0), make_weights(backbone, 4)
    size = AdapterBank(backbone).bytes_of(small)
    bank = AdapterBank(backbone, 2 * size)
    assert size == AdapterBank(backbone).bytes_of(make_weights(backbone, 2)), "ranks 1 and 3 are padded alike"
    assert [bank.install(small), bank.install(make_weights(backbone, 2))] == [1, 2]
    assert (bank.held_bytes, bank.has_room(1)) == (2 * size, False)
    with pytest.raises(Overloaded, match="--adapter-memory"):
        bank.install(small)
    bank.remove(1)
    assert bank.held_bytes == size
    assert not bank.has_room(bank.bytes_of(large))
    assert bank.install(small) == 1


def test_what_lay_in_a_place_before_is_gone() -> None:
    """A smaller adapter takes the place of a larger one of the same class, with fewer layers."""
    x = pixels(1)
    backbone, alone = FakeBackbone(), FakeBackbone()
    bank = AdapterBank(backbone)
    bank.install(make_weights(backbone, 2))
    bank.remove(bank.install(make_weights(backbone, 0)))
    slot = bank.install(make_weights(backbone, 1))
    load_weights(alone.image_tower, make_weights(alone, 1))
    with torch.inference_mode(), bank.rows([slot]):
        found = backbone.encode_image(x).embedding
    torch.testing.assert_close(found, alone.encode_image(x).embedding, atol=1e-5, rtol=0)


def test_a_thousand_come_and_go_in_the_memory_of_a_few() -> None:
    backbone = FakeBackbone()
    weights = make_weights(backbone, 0)
    bank = AdapterBank(backbone, 4 * AdapterBank(backbone).bytes_of(weights))
    held = [bank.install(weights) for _ in range(4)]
    for _ in range(300):
        bank.remove(held.pop(0))
        held.append(bank.install(weights))
    places = {len(stack.A) for layer in bank._layers.values() for stack in layer._stacks.values()}
    assert places == {5}


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
