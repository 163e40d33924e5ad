"""A head that reads films at further sizes: what it reads stands in order, is kept by the card, and must be there."""

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
    torch.testing.assert_close(head(own, enlarged=(first, second)), head(own, pooled))
    swapped = head(own, enlarged=(second, first))
    assert not torch.allclose(swapped, head(own, pooled), atol=1e-3)


def test_the_card_builds_the_same_head(head: ClassificationHead) -> None:
    opened = Classifier.open(replace(CARD, head=head.options), head.state_dict())
    assert opened.head.sizes == SIZES
    features = seen(0), (seen(1), seen(2))
    expected = head(features[0], enlarged=features[1]).double().detach().numpy()
    assert [result.logits.tolist() for result in opened(*features)] == expected.tolist()
    assert opened.of_study(*features).logits.shape == (2,)


def test_a_size_that_is_not_given_is_missed(head: ClassificationHead) -> None:
    with pytest.raises(InvalidRequest, match="2 further sizes; 1 were given"):
        head(seen(0), enlarged=(seen(1),))
    with pytest.raises(AdapterRefused, match="must read levels"):
        ClassificationHead(2, 16, 32, sizes=(64,))


def test_a_film_is_enlarged_smoothly_and_at_its_own_size_left_alone() -> None:
    film = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    assert enlarge(film, 32) is film
    larger = enlarge(film, 48)
    assert larger.shape == (1, 3, 48, 48)
    assert (larger[..., 4:-4].diff(dim=-1) > 0).all()
    torch.testing.assert_close(larger.mean(), film.mean(), atol=1e-3, rtol=0)
