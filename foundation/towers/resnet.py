"""ResNetTower: timm's bottleneck ResNet as an image tower, its 1 x 1 convolutions rewritten as linear maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from foundation.blocks import Bottleneck, block_from_bottleneck, frozen_norms
from foundation.errors import InvalidRequest
from foundation.towers.tower import ImageTower, TrunkState


class ResNetTower(ImageTower):
    """timm's ResNet of plain bottlenecks. Levels: the end of each of its four stages (strides 4, 8, 16, 32).

    LoRA adapts the 1x1 convolutions, which are linear maps over the channels of each position. BatchNorms are folded away.
    """

    side_step = 32

    def __init__(self, visual: Any) -> None:
        super().__init__()
        trunk = visual.trunk.eval()
        self.stem = frozen_norms(nn.Sequential(trunk.conv1, trunk.bn1, trunk.act1, trunk.maxpool))
        stages = [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
        self.blocks = nn.ModuleList(block_from_bottleneck(block) for stage in stages for block in stage)
        self.head = visual.head
        self.width = int(trunk.num_features)
        ends = [sum(len(stage) for stage in stages[: index + 1]) - 1 for index in range(len(stages))]
        self.taps = tuple(ends)

    def embed(self, pixels: Tensor) -> TrunkState:
        maps = self.stem(pixels)
        if maps.shape[-2] != maps.shape[-1] or pixels.shape[-1] % self.side_step:
            raise InvalidRequest(
                f"This tower takes square films whose side is a multiple of {self.side_step}, not {tuple(pixels.shape[-2:])}.",
                param="pixels",
            )
        return TrunkState(maps.flatten(2).transpose(1, 2), (maps.shape[-2], maps.shape[-1]))

    def before(self, index: int, state: TrunkState) -> TrunkState:
        """The grid a block leaves; the block itself knows the one it enters."""
        block = self.blocks[index]
        assert isinstance(block, Bottleneck)
        stride = block.stride
        return replace(state, grid=(state.grid[0] // stride, state.grid[1] // stride))

    def pool(self, hidden: Tensor) -> Tensor:
        embedding: Tensor = self.head(hidden.mean(dim=1))
        return embedding

    def lora_targets(self) -> list[str]:
        parts = ("conv1", "conv3", "shortcut")
        return [
            f"blocks.{i}.{part}" for i, block in enumerate(self.blocks) for part in parts if getattr(block, part) is not None
        ]
