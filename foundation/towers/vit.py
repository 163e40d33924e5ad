"""ViTTower: timm's VisionTransformer as an image tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foundation.errors import CheckpointRefused
from foundation.towers.tower import ImageTower, TrunkState, quarter_taps


class ViTTower(ImageTower):
    """A timm VisionTransformer inside open_clip's TimmModel (BiomedCLIP, SigLIP); its blocks are linear already."""

    visual: Any

    def __init__(self, visual: Any) -> None:
        super().__init__()
        trunk = visual.trunk
        self.blocks = nn.ModuleList(trunk.blocks)
        trunk.blocks = nn.Sequential()  # NOTE: the blocks live in this tower alone, so each has one name
        self.visual = visual
        self.prefix_tokens = int(trunk.num_prefix_tokens)
        self.width = int(trunk.embed_dim)
        self.taps = quarter_taps(len(self.blocks))
        _require_linear(self)

    def embed(self, pixels: Tensor) -> TrunkState:
        trunk = self.visual.trunk
        grid = trunk.patch_embed.dynamic_feat_size(pixels.shape[-2:])
        hidden = trunk._pos_embed(trunk.patch_embed(pixels))
        return TrunkState(trunk.norm_pre(hidden), tuple(grid))

    def pool(self, hidden: Tensor) -> Tensor:
        trunk = self.visual.trunk
        embedding: Tensor = self.visual.head(trunk.forward_head(trunk.norm(hidden)))
        return embedding


def _require_linear(tower: ImageTower) -> None:
    modules = dict(tower.named_modules())
    for name in tower.lora_targets():
        if not isinstance(modules.get(name), nn.Linear):
            raise CheckpointRefused(
                f"The image tower's `{name}` is not a plain linear map, so adapters could not bind to it. "
                "Use a ViT with timm's standard attention and MLP.",
                param="timm_model_name",
            )
