"""TextTower: open_clip's text transformer, or a BERT, as a text tower that adapters can bind to."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foundation.blocks import block_from_open_clip
from foundation.errors import CheckpointRefused
from foundation.towers.tower import ADAPTABLE


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
