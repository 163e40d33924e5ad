"""The image and text towers of a backbone, rewritten so that all of them look the same from outside.

    pixels -> embed -> blocks[0] ... blocks[L-1] -> pool -> embedding          (ImageTower, one class a family)

    family             embed                             blocks               pool
    ViTTower           timm's patches, tokens, position  timm's own           timm's head + open_clip's projection
    OpenClipTower      open_clip's, class token          rewritten, linear    ln_post, class token, projection
    VisformerTower     stem + convolution stage (28x28)  rewritten, linear    mean over positions, projection
    ResNetTower        stem, pooled                      bottlenecks          mean over positions, projection

Blocks work on (B, prefix + N, D) tokens; `levels` are maps (B, D, H, W) taken on the way, for heads that need places.
`run` may start and stop at any block, so a caller can share the lower blocks of one picture between adapters.
Single blocks are in `blocks.py`; `backbone.py` joins the two towers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from foundation.blocks import (
    Bottleneck,
    ChannelAffine,
    PatchConv2d,
    block_from_bottleneck,
    block_from_open_clip,
    block_from_visformer,
    fused,
)
from foundation.errors import CheckpointRefused, InvalidRequest

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
        self.stage1 = _frozen_norms(trunk.stage1)
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


class ResNetTower(ImageTower):
    """timm's ResNet of plain bottlenecks. Levels: the end of each of its four stages (strides 4, 8, 16, 32).

    LoRA adapts the 1x1 convolutions, which are linear maps over the channels of each position. BatchNorms are folded away.
    """

    side_step = 32

    def __init__(self, visual: Any) -> None:
        super().__init__()
        trunk = visual.trunk.eval()
        self.stem = _frozen_norms(nn.Sequential(trunk.conv1, trunk.bn1, trunk.act1, trunk.maxpool))
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


class TextTower(nn.Module):
    """A text encoder: token ids (B, T) padded to the full context length -> (B, E), not normalised."""

    def __init__(self, encoder: Any, blocks: nn.ModuleList, blocks_name: str, adaptable: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self._blocks_name = blocks_name
        self._block_count = len(blocks)
        self._adaptable = adaptable

    def forward(self, token_ids: Tensor) -> Tensor:
        embedding: Tensor = self.encoder(token_ids)
        return embedding

    def lora_targets(self) -> list[str]:
        """Names, inside this tower, of the linear maps LoRA may adapt, in block order."""
        return [f"{self._blocks_name}.{i}.{part}" for i in range(self._block_count) for part in self._adaptable]


def image_tower(visual: Any) -> ImageTower:
    """Rewrite the image tower of an open_clip model in evaluation mode; `visual` is taken apart, not to be reused."""
    import open_clip.transformer
    import timm.models.resnet
    import timm.models.visformer
    import timm.models.vision_transformer

    trunk = getattr(visual, "trunk", None)
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return OpenClipTower(visual)
    if isinstance(trunk, timm.models.vision_transformer.VisionTransformer):
        return ViTTower(visual)
    if isinstance(trunk, timm.models.visformer.Visformer):
        return VisformerTower(visual)
    if isinstance(trunk, timm.models.resnet.ResNet):
        return ResNetTower(visual)
    raise CheckpointRefused(
        f"The image tower is a {type(trunk or visual).__name__}, which is not supported. "
        "Use a checkpoint with a Vision Transformer (open_clip or timm), a visformer or a bottleneck ResNet (timm).",
        param="vision_cfg",
    )


def text_tower(text: Any) -> TextTower:
    """Rewrite the text tower of an open_clip CustomTextCLIP; `text` is changed in place and not to be reused."""
    import open_clip.transformer

    if isinstance(text, open_clip.transformer.TextTransformer):
        blocks = nn.ModuleList(block_from_open_clip(block) for block in text.transformer.resblocks)
        text.transformer.resblocks = blocks
        text.output_tokens = False
        return TextTower(text, blocks, "encoder.transformer.resblocks", ADAPTABLE)
    layers = getattr(getattr(getattr(text, "transformer", None), "encoder", None), "layer", None)
    if isinstance(layers, nn.ModuleList) and hasattr(layers[0], "attention"):
        text.output_tokens = False
        parts = tuple(name for name, module in layers[0].named_modules() if isinstance(module, nn.Linear))
        return TextTower(text, layers, "encoder.transformer.encoder.layer", parts)
    raise CheckpointRefused(
        f"The text tower is a {type(getattr(text, 'transformer', text)).__name__}, which is not supported. "
        "Use a checkpoint with open_clip's text transformer or a BERT.",
        param="text_cfg",
    )


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


def _require_linear(tower: ImageTower) -> None:
    modules = dict(tower.named_modules())
    for name in tower.lora_targets():
        if not isinstance(modules.get(name), nn.Linear):
            raise CheckpointRefused(
                f"The image tower's `{name}` is not a plain linear map, so adapters could not bind to it. "
                "Use a ViT with timm's standard attention and MLP.",
                param="timm_model_name",
            )


def _frozen_norms(stage: nn.Module) -> Any:
    """Replace each BatchNorm2d by timm's frozen one, whose statistics never move."""
    from timm.layers import freeze_batch_norm_2d

    return freeze_batch_norm_2d(stage)
