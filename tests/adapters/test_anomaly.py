"""p-values are uniform on normal films whatever the branches do; memory, heat and binding are what they say."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest

from adapters.card import AdapterCard, BaseRecord
from adapters.tasks.anomaly import BRANCHES, QUANTILES, AnomalyHead, Detector, HeadShape, greedy_coreset
from adapters.tasks.reference import NormalReference
from foundation.errors import AdapterRefused
from foundation.preprocess import InputContract

SHAPE = HeadShape(embed_dim=8, level_widths=(6, 6, 10), findings=3, memory=20, memory_width=5, reference=40)
CONTRACT = InputContract(32, (0.5,) * 3, (0.5,) * 3, resize_mode="squash")


def features(rows: int = 3) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(1)
    levels = tuple(torch.randn(rows, w, g, g, generator=generator) for w, g in zip((4, 6, 6, 10), (8, 4, 4, 2), strict=True))
    embedding = torch.nn.functional.normalize(torch.randn(rows, 8, generator=generator), dim=-1)
    return SimpleNamespace(embedding=embedding, levels=levels, grid=(2, 2))


def make_head() -> AnomalyHead:
    torch.manual_seed(0)
    head = AnomalyHead(SHAPE)
    head.start_projection(0)
    for name in ("text", "memory", "reference"):
        torch.nn.init.normal_(getattr(head, name))
    head.quantiles[:4] = torch.linspace(-3, 3, QUANTILES)
    head.quantiles[4] = torch.linspace(0, 1, QUANTILES)
    return head


def make_card(**changes: object) -> AdapterCard:
    options = {name: getattr(SHAPE, name) for name in HeadShape.__dataclass_fields__} | {
        "level_widths": [6, 6, 10],
        "places": [1, 1],
    }
    given = {"name": "x", "task": "anomaly", "labels": ("anomaly",), "base": BaseRecord("b", "f"), "preprocessing_version": 1}
    return AdapterCard(**(given | {"head": options} | changes))


# --- p-values --------------------------------------------------------------------------------------------------------


def test_p_is_uniform_on_normal_films_even_for_skewed_and_dependent_branches() -> None:
    random = np.random.default_rng(0)
    p_values = []
    for _ in range(400):  # a fresh reference each time: uniformity is over both
        common = random.standard_normal((31, 1))
        scores = np.exp(np.concatenate([common, common + 0.1 * random.standard_normal((31, 1)), random.random((31, 1))], 1))
        p_values.append(NormalReference(scores[:30], np.array([1.0, 0.5, 2.0])).p_values(scores[30:])[0])
    spread = np.array(p_values) - random.random(400) / 31  # within its step of 1/31 a p-value is spread evenly
    assert kstest(spread, "uniform").pvalue > 0.01
    assert min(p_values) >= 1 / 31


def test_p_equals_the_plain_definition() -> None:
    random = np.random.default_rng(1)
    held, asked, weights = random.normal(size=(12, 3)).round(1), random.normal(size=(5, 3)).round(1), np.array([1.0, 0.0, 0.5])
    for film, p in zip(asked, NormalReference(held, weights).p_values(asked), strict=True):
        everyone = np.vstack([held, film])
        ranks = (everyone[None] >= everyone[:, None]).sum(axis=1) / 13
        surprise = -(np.log(ranks) * weights).sum(axis=1)
        assert p == pytest.approx((surprise >= surprise[-1] - 1e-12).sum() / 13)


def test_ties_count_against_the_film() -> None:
    """A film like the strangest held-out one is not stranger: there are two such films among n + 1, not one."""
    held = np.arange(9.0)[:, None].repeat(3, axis=1)
    reference = NormalReference(held, np.ones(3))
    assert reference.p_values(held[-1:]) == pytest.approx(2 / 10)
    assert reference.p_values(held[-1:] + 1) == pytest.approx(1 / 10)
    assert NormalReference(np.zeros((9, 3)), np.ones(3)).p_values(np.zeros((1, 3))) == pytest.approx(1.0)


def test_stranger_films_get_smaller_p() -> None:
    reference = NormalReference(np.random.default_rng(2).normal(size=(99, 3)), np.ones(3))
    p = reference.p_values(np.array([[-2.0] * 3, [0.0] * 3, [9.0] * 3]))
    assert p[0] > p[1] > p[2] == pytest.approx(0.01)
    assert np.all(np.diff(reference.surprise(np.array([[-2.0] * 3, [0.0] * 3, [9.0] * 3]))) > 0)


# --- head ------------------------------------------------------------------------------------------------------------


def test_every_trained_tensor_learns() -> None:
    head = make_head()
    maps, films = head.trained(features())
    (maps.square().mean() + films.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())
    assert {name.split(".")[0] for name, _ in head.named_parameters()} == {"laterals", "patch", "whole"}


def test_distances_are_to_the_nearest_remembered_patch() -> None:
    head, x = make_head(), features()
    described = head.describe(x)
    slow = torch.stack([(described - one).norm(dim=-1) for one in head.memory]).amin(dim=0)
    torch.testing.assert_close(head.distances(described), slow, atol=1e-4, rtol=1e-4)
    head.memory.copy_(described.flatten(0, 2)[: len(head.memory)])
    assert head.distances(described).flatten()[: len(head.memory)].max() < 1e-2


def test_the_same_patch_elsewhere_is_another() -> None:
    """A normal patch in a place where it does not belong is not near what is remembered."""
    head, x = make_head(), features(1)
    plain = SimpleNamespace(
        embedding=x.embedding, grid=x.grid, levels=tuple(level[..., :1, :1].expand_as(level) for level in x.levels)
    )
    described = head.describe(plain)[0]
    assert (described[0, 0] - described[3, 3]).norm() > 0.5


def test_the_coreset_takes_the_farthest_each_time() -> None:
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0], [0.0, 9.0]])
    chosen = greedy_coreset(points, 3, seed=0)
    assert {int(one.norm() > 3) + int(one[1] > 3) for one in chosen} == {0, 1, 2}  # one of each cluster
    assert len(greedy_coreset(points, 10, seed=0)) == 5


def test_results_and_heat_in_the_films_own_pixels() -> None:
    detector = Detector.open(make_card(), make_head().state_dict())
    patches = torch.nn.functional.normalize(torch.randn(3, 4, 8), dim=-1)
    results = detector(features(), patches, [(40, 40), (50, 25), (30, 60)], CONTRACT)
    assert [result.heat.shape for result in results] == [(40, 40), (50, 25), (30, 60)]
    for result in results:
        assert 1 / 41 <= result.p_value <= 1
        assert result.normals == 40
        assert set(result.branches) == set(BRANCHES)
        assert 0 <= result.heat.min() <= result.heat.max() <= 1
        png, (low, high) = result.heat_png()
        levels = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_allclose(low + (high - low) * levels / 65535, result.heat, atol=1e-4)


def test_heat_is_a_rank_among_normal_patches() -> None:
    head = make_head()
    maps = np.random.default_rng(0).uniform(-3, 3, (2, 4, 4, 4)).astype(np.float32)
    head.weights.copy_(torch.tensor([1.0, 0.0, 0.0, 3.0]))
    heat = Detector(make_card(), head).heat(maps)
    mean = ((maps[:, 0] + 3) / 6 + 3 * (maps[:, 3] + 3) / 6) / 4
    np.testing.assert_allclose(heat, mean, atol=1e-5)
    head.quantiles[4] = torch.from_numpy(np.quantile(mean, np.linspace(0, 1, QUANTILES)))
    flat = np.sort(Detector(make_card(), head).heat(maps).ravel())
    np.testing.assert_allclose(flat, np.linspace(0, 1, flat.size), atol=0.02)  # among themselves: uniform


def test_levels_are_read_as_the_card_says_and_as_before_where_it_says_nothing() -> None:
    x, widths = features(), (4, 6, 6, 10)
    for pools, said in ((("mean",), {"read_pools": ["mean"]}), (("mean", "std"), {})):
        head = AnomalyHead(replace(SHAPE, read_widths=widths, read_pools=pools))
        head.load_state_dict(head.state_dict() | make_head().state_dict())
        assert head.reader is not None
        torch.nn.init.normal_(head.reader.linear.weight)
        options = {name: value for name, value in make_card().head.items() if name != "read_pools"}
        card = make_card(head=options | {"read_widths": list(widths)} | said)
        read = torch.cat([_pooled(level, pool) for level in x.levels for pool in pools], dim=1) @ head.reader.linear.weight[0]
        trained = Detector.open(card, head.state_dict()).head(x, torch.randn(3, 4, 8)).films[:, BRANCHES.index("trained")]
        torch.testing.assert_close(trained, head.trained(x)[1] + read, atol=1e-4, rtol=1e-4)


def _pooled(level: torch.Tensor, pool: str) -> torch.Tensor:
    return level.mean(dim=(2, 3)) if pool == "mean" else level.flatten(2).std(dim=2, correction=0)


def test_heads_that_do_not_bind_are_refused() -> None:
    tensors = make_head().state_dict()
    with pytest.raises(AdapterRefused, match="do not bind: memory"):
        Detector.open(make_card(), tensors | {"memory": torch.zeros(3, 3)})
    with pytest.raises(AdapterRefused, match="is for fusion"):
        Detector.open(make_card(task="fusion"), tensors)
    with pytest.raises(AdapterRefused, match="at least one reference"):
        Detector.open(make_card(head=dict(make_card().head) | {"reference": 0}), tensors)
