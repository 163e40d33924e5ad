"""ImageTower: what every family of image towers has in common, the states on the way up and the levels taken there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor, nn

ADAPTABLE = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # the linear maps of an image block that LoRA adapts


@dataclass(frozen=True)
class TrunkState:
    """A picture part of the way up: hidden (B, prefix + N, D), its grid (h, w) with h * w = N, and levels so far."""

    hidden: Tensor
    grid: tuple[int, int]
    levels: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class TowerOutput:
    """embedding (B, E), not normalised; tokens (B, N, D) of the last block before the final norm; four levels."""

    embedding: Tensor
    tokens: Tensor
    levels: tuple[Tensor, ...]
    grid: tuple[int, int]


class ImageTower(nn.Module):
    """Base of the families: runs `blocks`, taking a level after each block named in `taps`."""

    blocks: nn.ModuleList
    prefix_tokens: int = 0
    taps: tuple[int, ...]
    width: int  # of the last block
    side_step: int = 0  # the tower takes squares whose side is a multiple of it; 0: of one size only

    def embed(self, pixels: Tensor) -> TrunkState:
        """pixels (B, 3, S, S), normalised -> the state before the first block."""
        raise AssertionError("each family defines embed")

    def pool(self, hidden: Tensor) -> Tensor:
        """Hidden state after the last block (B, prefix + N, D), before the final norm -> embedding (B, E)."""
        raise AssertionError("each family defines pool")

    def before(self, index: int, state: TrunkState) -> TrunkState:
        """What happens between block index - 1 and block index; nothing, unless the family changes resolution."""
        return state

    def run(self, state: TrunkState, start: int = 0, stop: int | None = None) -> TrunkState:
        """Run blocks start .. stop - 1; `state` must be the one that stands before block `start`."""
        for index in range(start, len(self.blocks) if stop is None else stop):
            state = self.before(index, state)
            hidden = self.blocks[index](state.hidden)
            taken = (self.as_map(hidden, state.grid),) * self.taps.count(index)
            state = replace(state, hidden=hidden, levels=state.levels + taken)
        return state

    def finish(self, state: TrunkState) -> TowerOutput:
        """The state after the last block -> outputs."""
        tokens = state.hidden[:, self.prefix_tokens :]
        return TowerOutput(self.pool(state.hidden), tokens, state.levels, state.grid)

    def forward(self, pixels: Tensor) -> TowerOutput:
        return self.finish(self.run(self.embed(pixels)))

    def embed_patches(self, tokens: Tensor) -> Tensor:
        """tokens (B, N, D) -> (B, N, E): the embedding of a picture that consists of this one token everywhere.

        For average pooling with a linear projection the mean over N is the picture's own embedding; for a class token
        or an attention pool it is the usual dense read-out (final norm, value path and projection at each place).
        """
        B, N, D = tokens.shape
        alone = tokens.reshape(B * N, 1, D).expand(-1, self.prefix_tokens + 1, -1)
        return self.pool(alone).reshape(B, N, -1)

    def lora_targets(self) -> list[str]:
        """Names, inside this tower, of the linear maps LoRA may adapt: `blocks.0.attn.qkv`, ... in block order."""
        return [f"blocks.{index}.{part}" for index in range(len(self.blocks)) for part in ADAPTABLE]

    def as_map(self, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = hidden[:, self.prefix_tokens :]
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def block_index(name: str) -> int:
    """The number of the block a module or tensor name belongs to: `blocks.3.attn.qkv` -> 3; -1 where there is none."""
    parts = name.split(".")
    for container, index in pairwise(parts):
        if container in ("blocks", "resblocks", "layer") and index.isdigit():
            return int(index)
    return -1


def quarter_taps(depth: int) -> tuple[int, ...]:
    """The blocks after which 1/4, 1/2, 3/4 and all of the depth are done."""
    return tuple(max(0, math.ceil(depth * quarter / 4) - 1) for quarter in (1, 2, 3, 4))
