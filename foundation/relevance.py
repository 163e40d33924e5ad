"""Where on a film a sentence's score comes from: relevance maps, for every tower that can be opened.

    dense      each patch through the tower's own pooling, compared with the sentence          every tower; no gradient
    gradcam    the last level, each channel weighed by its mean gradient (Selvaraju 2017)      every tower
    layercam   the level before it, each place weighed by its own gradient (Jiang 2021)        every tower; finer places
    legrad     gradients of every layer's attention, layer by layer (Bousselham 2024)          towers with attention

A class token is pooled alone: what patches hold after the last block reaches no score. There gradcam looks a block earlier.

The score explained is the cosine between the film's embedding and a direction of the embedding space, such as "there is"
minus "there is no". A map says what the score leans on, not what is in the film: `training/evaluating/explanations.py` measures
how often its peak lies on the finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from foundation.errors import InvalidRequest
from foundation.towers.resnet import ResNetTower
from foundation.towers.tower import ImageTower, TrunkState

if TYPE_CHECKING:
    from foundation.backbone import Backbone

METHODS = ("dense", "gradcam", "layercam", "legrad")


def methods_of(tower: ImageTower) -> tuple[str, ...]:
    """The methods that this tower can be explained by."""
    return METHODS[:-1] if isinstance(tower, ResNetTower) else METHODS


def relevance_maps(backbone: Backbone, pixels: Tensor, directions: Tensor, method: str) -> Tensor:
    """pixels (3, S, S), normalised; directions (L, E) -> (L, h, w), larger speaking more for the direction.

    Runs the tower by itself, with gradients where the method needs them; no weight is changed. Raises InvalidRequest
    where the method is unknown or not for this tower.
    """
    tower = backbone.image_tower
    if method not in methods_of(tower):
        raise InvalidRequest(
            f"'{method}' cannot explain this model; it can be explained by {', '.join(methods_of(tower))}.", param="map_method"
        )
    # NOTE: what was made under inference mode cannot take part in a gradient, hence the clones.
    with torch.inference_mode(False), torch.no_grad():
        film = pixels.clone()[None].to(backbone.device, backbone.dtype)
        wanted = directions.clone().to(backbone.device).float()
        if method == "dense":
            return _dense(backbone, film, wanted)
        if method == "legrad":
            return _legrad(tower, film, wanted)
        return _by_gradient(tower, film, wanted, gradcam_block(tower, film) if method == "gradcam" else tower.taps[-2], method)


def gradcam_block(tower: ImageTower, film: Tensor) -> int:
    """The last block after which patches can still move the embedding: the last, unless a class token is pooled alone."""
    ended = tower.run(tower.embed(film)).hidden
    emptied = ended.clone()
    emptied[:, tower.prefix_tokens :] = 0
    last = len(tower.blocks) - 1
    return last - 1 if torch.equal(tower.pool(emptied), tower.pool(ended)) else last


def _dense(backbone: Backbone, film: Tensor, directions: Tensor) -> Tensor:
    features = backbone.encode_image(film)
    patches = backbone.patch_embeddings(features)[0]  # (N, E)
    return (patches @ directions.T).T.reshape(len(directions), *features.grid)


def _by_gradient(tower: ImageTower, film: Tensor, directions: Tensor, block: int, method: str) -> Tensor:
    """Grad-CAM or LayerCAM at the end of block number `block`."""
    state = tower.run(tower.embed(film), 0, block + 1)
    with torch.enable_grad():
        leaf = state.hidden.detach().clone().requires_grad_(True)
        ended = tower.run(TrunkState(leaf, state.grid, state.levels), block + 1)
        scores = _scores(tower, ended.hidden, directions)
        gradients = [torch.autograd.grad(score, leaf, retain_graph=True)[0] for score in scores]
    values = tower.as_map(leaf.detach(), state.grid)[0].float()  # (D, h, w)
    maps = []
    for gradient in gradients:
        slope = tower.as_map(gradient, state.grid)[0].float()
        weight = slope.mean((1, 2), keepdim=True) if method == "gradcam" else slope.relu()
        maps.append((weight * values).sum(0).relu())
    return torch.stack(maps)


def _legrad(tower: ImageTower, film: Tensor, directions: Tensor) -> Tensor:
    """For every block: the score of its own output, pooled as the last one's is; its gradient on the block's attention."""
    state = tower.embed(film)
    maps: list[Tensor] = []
    for index in range(len(tower.blocks)):
        state = tower.before(index, state)
        with torch.enable_grad(), attention_weights() as seen:
            leaf = state.hidden.detach().clone().requires_grad_(True)
            hidden = tower.blocks[index](leaf)
            if seen and hidden.shape[-1] == tower.width:
                scores = _scores(tower, hidden, directions)
                of_layer = [torch.autograd.grad(score, seen[-1], retain_graph=True)[0][0] for score in scores]
                maps.append(torch.stack([_over_keys(gradient, tower, state.grid) for gradient in of_layer]))
        state = TrunkState(hidden.detach(), state.grid)
    largest = max(one.shape[-2:] for one in maps)
    return torch.stack([F.interpolate(one[None], largest, mode="bilinear")[0] for one in maps]).sum(0)


def _over_keys(gradient: Tensor, tower: ImageTower, grid: tuple[int, int]) -> Tensor:
    """(heads, queries, keys) -> (h, w): what raises the score, averaged over heads and queries, at each patch as a key."""
    kept = gradient.float().relu().mean((0, 1))[tower.prefix_tokens :]
    return kept.reshape(grid)


def _scores(tower: ImageTower, hidden: Tensor, directions: Tensor) -> Tensor:
    """(L,): the cosine of the pooled embedding with each direction's own length kept."""
    return directions @ F.normalize(tower.pool(hidden).float(), dim=-1)[0]


class _Explicit(TorchFunctionMode):
    """Within it, fused attention is computed step by step, and the weights (B, heads, queries, keys) are kept."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        assert dropout_p == 0.0, "towers are run without dropout"
        assert not is_causal, "towers attend everywhere"
        logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        weights = (logits if attn_mask is None else logits + attn_mask).softmax(-1)
        self.seen.append(weights)
        return weights @ value


@contextmanager
def attention_weights() -> Iterator[list[Tensor]]:
    """A list that fills with the attention weights of every attention computed in the block."""
    seen: list[Tensor] = []
    with _Explicit(seen):
        yield seen
