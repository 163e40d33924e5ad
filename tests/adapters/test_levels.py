"""The reading of the levels starts at zero and pools as it says; a head with it binds, learns and opens; old heads still do."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from adapters.card import AdapterCard, BaseRecord
from adapters.fake import FakeBackbone
from adapters.tasks.classification import ClassificationHead, Classifier, Prompts
from adapters.tasks.levels import LevelReader, pool_levels
from foundation.errors import AdapterRefused

WIDTHS, POOLS = (3, 5), ("mean", "std")
CARD = AdapterCard("x", "classification", ("a", "b"), BaseRecord("b", "f"), 1, head={"embed_dim": 16, "width": 32})


def seen(rows: int = 4) -> SimpleNamespace:
    torch.manual_seed(0)
    levels = (torch.randn(rows, 3, 4, 4) * 7 + 2, torch.randn(rows, 5, 2, 2))
    return SimpleNamespace(embedding=torch.randn(rows, 16), tokens=torch.randn(rows, 9, 32), levels=levels)


def head() -> ClassificationHead:
    return ClassificationHead(2, 16, 32, WIDTHS, POOLS)


def test_pools_stand_level_by_level() -> None:
    first, second = seen().levels
    pooled = pool_levels((first, second), ("mean", "max", "std"))
    expected = [first.mean((2, 3)), first.amax((2, 3)), first.std((2, 3), correction=0)]
    expected += [second.mean((2, 3)), second.amax((2, 3)), second.std((2, 3), correction=0)]
    torch.testing.assert_close(pooled, torch.cat(expected, dim=1))


def test_an_untrained_head_is_zero_shot_still(backbone: FakeBackbone) -> None:
    prompts = Prompts.from_templates(("a", "b"), ("there is {}",), ("no {}",))
    plain, reading = ClassificationHead(2, 16, 32), head()
    plain.start_from_text(backbone, prompts)
    reading.start_from_text(backbone, prompts)
    assert torch.equal(plain(seen()), reading(seen()))


def test_a_fit_is_read_as_it_was_fitted_and_every_part_learns() -> None:
    reading, x = head(), seen()
    pooled = pool_levels(x.levels, POOLS)
    mean, spread = pooled.mean(0), pooled.std(0)
    weight, bias = torch.randn(2, 16), torch.randn(2)
    assert reading.levels is not None
    reading.levels.start(mean, spread, weight, bias)
    expected = (pooled - mean) / spread @ weight.T + bias
    torch.testing.assert_close(reading(x) - ClassificationHead.forward(_without(reading), x), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reading(x, pooled), reading(x))
    torch.nn.init.normal_(reading.query)
    torch.nn.init.normal_(reading.value)
    reading(x).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in reading.parameters())


def _without(reading: ClassificationHead) -> ClassificationHead:
    bare = ClassificationHead(2, 16, 32)
    bare.load_state_dict({name: one for name, one in reading.state_dict().items() if not name.startswith("levels.")})
    return bare


def test_heads_with_and_without_levels_open() -> None:
    plain, reading = ClassificationHead(2, 16, 32), head()
    assert plain.options == CARD.head
    for made in (plain, reading):
        opened = Classifier.open(replace(CARD, head=made.options), made.state_dict()).head
        torch.testing.assert_close(opened(seen()), made(seen()))
    with pytest.raises(AdapterRefused, match="do not bind: levels"):
        Classifier.open(CARD, reading.state_dict())
    with pytest.raises(AdapterRefused, match="not by median"):
        Classifier.open(replace(CARD, head=reading.options | {"pools": ["median"]}), reading.state_dict())
    with pytest.raises(AdapterRefused, match="odd are mood"):
        Classifier.open(replace(CARD, head=plain.options | {"mood": 1}), plain.state_dict())


def test_a_reader_needs_levels_and_pools() -> None:
    with pytest.raises(AdapterRefused, match="is missing"):
        LevelReader((3,), (), 2)
