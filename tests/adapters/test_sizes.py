"""A head that reads films at further sizes, or mirrored: what it reads stands in order, is kept by the card, must be there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from adapters.card import AdapterCard, BaseRecord
from adapters.tasks.classification import ClassificationHead, Classifier
from adapters.tasks.levels import pool_levels
from foundation.enlarge import enlarge
from foundation.errors import AdapterRefused, InvalidRequest
from foundation.look import AS_IT_IS, Look

WIDTHS, POOLS, SIZES = (3, 5), ("mean", "std"), (48, 64)
CARD = AdapterCard("x", "classification", ("a", "b"), BaseRecord("b", "f"), 1)


def seen(seed: int, rows: int = 4) -> SimpleNamespace:
    random = torch.Generator().manual_seed(seed)
    levels = tuple(torch.randn(rows, width, 4, 4, generator=random) for width in WIDTHS)
    tokens = torch.randn(rows, 9, 32, generator=random)
    return SimpleNamespace(embedding=torch.randn(rows, 16, generator=random), tokens=tokens, levels=levels)


@pytest.fixture
def head() -> ClassificationHead:
    torch.manual_seed(0)
    made = ClassificationHead(2, 16, 32, WIDTHS, POOLS, sizes=SIZES)
    for tensor in made.state_dict().values():
        torch.nn.init.normal_(tensor)
    return made


def test_each_size_is_read_by_weights_of_its_own(head: ClassificationHead) -> None:
    own, first, second = seen(0), seen(1), seen(2)
    pooled = torch.cat([pool_levels(one.levels, POOLS) for one in (own, first, second)], dim=1)
    torch.testing.assert_close(head(own, further=(first, second)), head(own, pooled))
    swapped = head(own, further=(second, first))
    assert not torch.allclose(swapped, head(own, pooled), atol=1e-3)


def test_the_card_builds_the_same_head(head: ClassificationHead) -> None:
    opened = Classifier.open(replace(CARD, head=head.options), head.state_dict())
    assert opened.head.sizes == SIZES
    features = seen(0), (seen(1), seen(2))
    expected = head(features[0], further=features[1]).double().detach().numpy()
    assert [result.logits.tolist() for result in opened(*features)] == expected.tolist()
    assert opened.of_study(*features).logits.shape == (2,)


def test_other_sizes_may_be_pooled_in_a_way_of_their_own() -> None:
    torch.manual_seed(0)
    head = ClassificationHead(2, 16, 32, WIDTHS, ("mean", "max"), sizes=(48,), is_mirrored=True, size_pools=("std",))
    assert head.levels is not None
    torch.nn.init.normal_(head.levels.linear.weight)
    own, larger, own_mirrored, larger_mirrored = (seen(seed) for seed in range(4))
    upright, mirrored = (
        torch.cat([pool_levels(first.levels, ("mean", "max")), pool_levels(second.levels, ("std",))], dim=1)
        for first, second in ((own, larger), (own_mirrored, larger_mirrored))
    )
    read = head(own, further=(larger, own_mirrored, larger_mirrored))
    torch.testing.assert_close(read, head(own, (upright + mirrored) / 2))
    opened = Classifier.open(replace(CARD, head=head.options), head.state_dict())
    assert opened.head.options == head.options
    assert opened.head.levels is not None
    assert (opened.head.levels.pools, opened.head.size_pools) == (("mean", "max"), ("std",))
    with pytest.raises(AdapterRefused, match="not by median"):
        ClassificationHead(2, 16, 32, WIDTHS, sizes=(48,), pools=("mean",), size_pools=("median",))


def test_a_size_that_is_not_given_is_missed(head: ClassificationHead) -> None:
    with pytest.raises(InvalidRequest, match="2 further looks at each film; 1 were given"):
        head(seen(0), further=(seen(1),))
    with pytest.raises(AdapterRefused, match="must read levels"):
        ClassificationHead(2, 16, 32, sizes=(64,))


def test_a_mirrored_film_weighs_as_much_as_the_film() -> None:
    torch.manual_seed(0)
    head = ClassificationHead(2, 16, 32, WIDTHS, POOLS, sizes=SIZES[:1], is_mirrored=True)
    assert head.looks == (Look(48), Look(0, True), Look(48, True))
    assert head.levels is not None
    torch.nn.init.normal_(head.levels.linear.weight)
    own, larger, own_mirrored, larger_mirrored = (seen(seed) for seed in range(4))
    read = head(own, further=(larger, own_mirrored, larger_mirrored))
    upright, mirrored = (
        torch.cat([pool_levels(one.levels, POOLS) for one in pair], dim=1)
        for pair in ((own, larger), (own_mirrored, larger_mirrored))
    )
    torch.testing.assert_close(read, head(own, (upright + mirrored) / 2))
    opened = Classifier.open(replace(CARD, head=head.options), head.state_dict())
    assert opened.head.is_mirrored
    assert opened.head.options == head.options
    with pytest.raises(AdapterRefused, match="mirrored, must read levels"):
        ClassificationHead(2, 16, 32, is_mirrored=True)


def test_a_look_shows_the_film_at_its_size_and_side() -> None:
    film = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert AS_IT_IS.of(film) is film
    torch.testing.assert_close(Look(0, True).of(film), film.flip(-1))
    torch.testing.assert_close(Look(48, True).of(film), enlarge(film, 48).flip(-1))
    assert (AS_IT_IS.rows(32), Look(64).rows(32), Look(64, True).rows(32)) == (1.0, 4.0, 4.0)
    assert len({str(look) for look in (AS_IT_IS, Look(0, True), Look(48), Look(48, True))}) == 4


def test_a_film_is_enlarged_smoothly_and_at_its_own_size_left_alone() -> None:
    film = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    assert enlarge(film, 32) is film
    larger = enlarge(film, 48)
    assert larger.shape == (1, 3, 48, 48)
    assert (larger[..., 4:-4].diff(dim=-1) > 0).all()
    torch.testing.assert_close(larger.mean(), film.mean(), atol=1e-3, rtol=0)
