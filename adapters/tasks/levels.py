"""A linear reading of a tower's levels: what its lower blocks saw, pooled over the film, as logits.

    levels, each (B, D, H, W)  ->  pooled (B, F), level by level, in each level pool by pool  ->  (B, K)

The last block of a pretrained tower keeps what its training asked for; texture that other findings need is often still there
one block earlier. The reading starts at zero, so a head that adds it answers as before until it is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from foundation.errors import AdapterRefused
from foundation.look import Look

POOLS = ("mean", "max", "std")


def misnamed_pools(names: Iterable[str]) -> str | None:
    """What is wrong with the names of pools; None where nothing is."""
    odd = [name for name in names if name not in POOLS]
    return f"Levels are pooled by {', '.join(POOLS)}, not by {', '.join(odd)}." if odd else None


def pools_in(look: Look, pools: Sequence[str], size_pools: Sequence[str]) -> tuple[str, ...]:
    """How levels are pooled in a look: by `size_pools` at a size other than the film's own, where there are any."""
    return tuple(size_pools if look.size and size_pools else pools)


def pool_levels(levels: Sequence[Tensor], pools: Sequence[str]) -> Tensor:
    """Levels (B, D_l, H_l, W_l) -> (B, F) float32 with F = sum of D_l times the number of pools."""
    flat = [level.float().flatten(2) for level in levels]
    return torch.cat([_pool(level, name) for level in flat for name in pools], dim=1)


def _pool(level: Tensor, name: str) -> Tensor:
    if name == "mean":
        return level.mean(dim=2)
    return level.amax(dim=2) if name == "max" else level.std(dim=2, correction=0)


class LevelReader(nn.Module):
    """Linear over pooled levels (B, F), each brought to zero mean and unit variance by statistics it keeps.

    further: the pools of each further size at which the levels are read too; F is the sum over all sizes.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, widths: Sequence[int], pools: Sequence[str], labels: int, further: Sequence[Sequence[str]] = ()) -> None:
        super().__init__()
        every = (tuple(pools), *map(tuple, further))
        if wrong := misnamed_pools(name for names in every for name in names):
            raise AdapterRefused(wrong)
        if not all(every) or not widths:
            raise AdapterRefused(
                "A head that reads levels names their widths and how they are pooled; one of these is missing."
            )
        self.widths, self.pools = tuple(widths), tuple(pools)
        size = sum(self.widths) * sum(map(len, every))
        self.linear = nn.Linear(size, labels)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.linear((pooled.float() - self.mean) * self.scale)
        return logits

    @torch.no_grad()
    def start(self, mean: Tensor, spread: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Take a fit on standardised features: mean and spread (F,), weight (K, F), bias (K,)."""
        self.mean.copy_(mean)
        self.scale.copy_(1 / spread.clamp_min(1e-6))
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)
