"""VisformerTower: timm's visformer as an image tower, its attention rewritten as linear maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foundation.blocks import ChannelAffine, PatchConv2d, block_from_visformer, frozen_norms, fused
from foundation.errors import CheckpointRefused
from foundation.towers.tower import ImageTower, TrunkState


class Downsample(nn.Module):
    """Halve the grid with a convolution (its BatchNorm fused) and add the next stage's position embedding."""

    def __init__(self, patch_embed: Any, position: nn.Parameter | None) -> None:
        super().__init__()
        self.conv = PatchConv2d.around(fused(patch_embed.proj, patch_embed.norm))
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D', H/2, W/2)."""
        x = self.conv(x)
        return x if self.position is None else x + self.position


class VisformerTower(ImageTower):
    """timm's visformer: a convolution stem and stage, then two stages of attention blocks at falling resolution.

    Levels: the end of the convolution stage, the middle and the end of the first attention stage, the end of the last
    (28, 14, 14 and 7 positions a side at 224 pixels). BatchNorms are frozen: `train()` does not touch their statistics.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        trunk = visual.trunk.eval()
        if trunk.stem is None or trunk.patch_embed2 is None or any(block.attn is not None for block in trunk.stage1):
            raise CheckpointRefused(
                "The visformer has an attention first stage, which is not supported. Use visformer_tiny or _small.",
                param="timm_model_name",
            )
        self.stem = nn.Sequential(fused(trunk.stem[0], trunk.stem[1]), nn.ReLU())
        self.enter_stage1 = Downsample(trunk.patch_embed1, trunk.pos_embed1)
        self.stage1 = frozen_norms(trunk.stage1)
        self.enter_stage2 = Downsample(trunk.patch_embed2, trunk.pos_embed2)
        self.enter_stage3 = Downsample(trunk.patch_embed3, trunk.pos_embed3)
        stages = [list(trunk.stage2), list(trunk.stage3)]
        self.blocks = nn.ModuleList(block_from_visformer(block) for stage in stages for block in stage)
        self.norm = ChannelAffine.from_batch_norm(trunk.norm)
        self.head = visual.head
        self.width = int(trunk.num_features)
        self.stage3_start = len(stages[0])
        self.taps = (max(0, self.stage3_start // 2 - 1), self.stage3_start - 1, len(self.blocks) - 1)

    def embed(self, pixels: Tensor) -> TrunkState:
        maps = self.stage1(self.enter_stage1(self.stem(pixels)))
        return self._enter(self.enter_stage2, maps, levels=(maps,))

    def before(self, index: int, state: TrunkState) -> TrunkState:
        if index != self.stage3_start:
            return state
        return self._enter(self.enter_stage3, self.as_map(state.hidden, state.grid), state.levels)

    def pool(self, hidden: Tensor) -> Tensor:
        embedding: Tensor = self.head(self.norm(hidden).mean(dim=1))
        return embedding

    def _enter(self, stage: nn.Module, maps: Tensor, levels: tuple[Tensor, ...]) -> TrunkState:
        maps = stage(maps)
        return TrunkState(maps.flatten(2).transpose(1, 2), (maps.shape[-2], maps.shape[-1]), levels)
