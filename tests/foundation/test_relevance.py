"""Relevance maps: equal to a slower truth, finite, of the tower's own places, and refused where a tower has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from foundation.errors import InvalidRequest
from foundation.relevance import attention_weights, gradcam_block, methods_of, relevance_maps
from foundation.tiny import make_tiny_checkpoint
from foundation.towers.tower import TrunkState


@pytest.fixture(scope="module", params=["open_clip", "resnet", "biomedclip"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_checkpoint(str(make_tiny_checkpoint(tmp_path_factory.mktemp(request.param), request.param))).backbone


def film(backbone: Backbone, seed: int = 0) -> torch.Tensor:
    size = backbone.contract.size
    return torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed))


def directions(backbone: Backbone, count: int = 2) -> torch.Tensor:
    return torch.randn(count, backbone.embed_dim, generator=torch.Generator().manual_seed(9))


def test_every_method_gives_a_map_of_each_direction_even_within_inference_mode(backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with torch.inference_mode():
        shown, asked = film(backbone), directions(backbone)
        for method in methods_of(backbone.image_tower):
            maps = relevance_maps(backbone, shown, asked, method)
            assert maps.shape[0] == 2
            assert maps.ndim == 3
            assert torch.isfinite(maps).all()
            assert not torch.allclose(maps[0], maps[1]), f"{method}: the same map for two directions"
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_gradcam_is_the_gradient_of_the_score(backbone: Backbone) -> None:
    """Against finite steps of one channel at the block it looks at, everywhere at once."""
    tower, asked = backbone.image_tower.double(), directions(backbone, 1).double()

    def score(state: TrunkState) -> torch.Tensor:
        return (F.normalize(tower.pool(tower.run(state, after).hidden), dim=-1) @ asked[0]).squeeze()

    with torch.no_grad():
        shown = film(backbone)[None].double()
        after = gradcam_block(tower, shown) + 1
        state = tower.run(tower.embed(shown), 0, after)
        slopes = torch.zeros(tower.width, dtype=torch.double)
        for channel in range(0, tower.width, max(1, tower.width // 16)):
            step = torch.zeros_like(state.hidden)
            step[:, tower.prefix_tokens :, channel] = 1e-5
            high, low = (score(replace(state, hidden=state.hidden + sign * step)) for sign in (1, -1))
            slopes[channel] = (high - low) / 2e-5 / (state.hidden.shape[1] - tower.prefix_tokens)
        values = tower.as_map(state.hidden, state.grid)[0]
    leaf = state.hidden.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(replace(state, hidden=leaf)), leaf)
    weights = tower.as_map(gradient, state.grid)[0].mean((1, 2))
    known = slopes != 0
    assert known.sum() >= 16, "a score that no patch can move is not explained by patches"
    torch.testing.assert_close(weights[known], slopes[known], rtol=1e-4, atol=1e-9)
    expected = (weights[:, None, None] * values).sum(0).relu()
    tower.float()
    found = relevance_maps(backbone, film(backbone), asked.float(), "gradcam")[0]
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-5)


def test_legrad_equals_gradients_taken_by_finite_steps(tmp_path: Path) -> None:
    """The last block's attention of a small tower, one weight after another."""
    backbone = open_checkpoint(str(make_tiny_checkpoint(tmp_path, "open_clip"))).backbone
    tower, asked = backbone.image_tower.double(), directions(backbone, 1)[0].double()
    with torch.no_grad():
        state = tower.run(tower.embed(film(backbone)[None].double()), 0, len(tower.blocks) - 1)
        block = tower.blocks[-1]
        normed = block.norm1(state.hidden)
        batch, count, width = normed.shape
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(normed).reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)

        def score(weights: torch.Tensor) -> float:
            mixed = (weights @ v).transpose(1, 2).reshape(batch, count, width)
            hidden = state.hidden + block.ls1(block.attn.proj(mixed))
            hidden = hidden + block.ls2(block.mlp(block.norm2(hidden)))
            return float((F.normalize(tower.pool(hidden), dim=-1) @ asked).squeeze())

        places = [(0, 0, 1), (1, 0, 3), (0, 2, 2), (1, 4, 5)]
        stepped = []
        for head, query, key in places:
            step = torch.zeros_like(weights)
            step[0, head, query, key] = 1e-4
            stepped.append((score(weights + step) - score(weights - step)) / 2e-4)
    with torch.enable_grad(), attention_weights() as seen:
        hidden = block(state.hidden.clone().requires_grad_(True))
        value = (F.normalize(tower.pool(hidden), dim=-1) @ asked).squeeze()
        (gradient,) = torch.autograd.grad(value, seen[-1])
    torch.testing.assert_close(seen[-1].detach(), weights)
    assert [float(gradient[0, h, q, k]) for h, q, k in places] == pytest.approx(stepped, rel=1e-4, abs=1e-9)


def test_weights_kept_change_no_output(backbone: Backbone) -> None:
    shown = film(backbone)[None]
    with torch.no_grad():
        plain = backbone.encode_image(shown).embedding
        with attention_weights() as seen:
            kept = backbone.encode_image(shown).embedding
    torch.testing.assert_close(kept, plain, rtol=1e-4, atol=1e-5)
    assert bool(seen) == ("legrad" in methods_of(backbone.image_tower))


def test_a_method_that_a_tower_has_not_is_refused_by_name(backbone: Backbone) -> None:
    with pytest.raises(InvalidRequest, match="can be explained by dense, gradcam"):
        relevance_maps(backbone, film(backbone), directions(backbone), "guesswork")
    if "legrad" not in methods_of(backbone.image_tower):
        with pytest.raises(InvalidRequest, match="'legrad' cannot explain this model"):
            relevance_maps(backbone, film(backbone), directions(backbone), "legrad")
