"""OpenClipTower: open_clip's own VisionTransformer as an image tower, its blocks rewritten."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foundation.blocks import block_from_open_clip
from foundation.towers.tower import ImageTower, TrunkState, quarter_taps


class OpenClipTower(ImageTower):
    """open_clip's own VisionTransformer, its blocks rewritten."""

    prefix_tokens = 1
    visual: Any

    def __init__(self, visual: Any) -> None:
        super().__init__()
        transformer = visual.transformer
        self.blocks = nn.ModuleList(block_from_open_clip(block) for block in transformer.resblocks)
        self.width = int(transformer.width)
        transformer.resblocks = nn.ModuleList()
        self.visual = visual
        self.taps = quarter_taps(len(self.blocks))

    def embed(self, pixels: Tensor) -> TrunkState:
        rows, columns = (int(size) for size in self.visual.patch_size)
        grid = (pixels.shape[-2] // rows, pixels.shape[-1] // columns)
        return TrunkState(self.visual._embeds(pixels), grid)

    def pool(self, hidden: Tensor) -> Tensor:
        pooled: Tensor = self.visual._pool(hidden)[0]
        return pooled if self.visual.proj is None else pooled @ self.visual.proj
