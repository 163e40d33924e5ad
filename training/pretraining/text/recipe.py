"""TextRecipe: the shape of the text tower and the course it is distilled by; and the tower it describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foundation.errors import InvalidRequest


@dataclass(frozen=True)
class TextRecipe:
    """How the text tower is built and distilled; a stopped run goes on with the same one only."""

    vocab_size: int = 6144
    width: int = 256
    heads: int = 4
    layers: int = 4
    context_length: int = 64
    embed_dim: int = 256
    steps: int = 900
    batch: int = 256
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup_steps: int = 60
    held_out: float = 0.03
    templates: int = 24_000
    claim_weight: float = 3.0
    pair_weight: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InvalidRequest(f"The width {self.width} is not divisible by heads {self.heads}.", param="heads")
        if self.vocab_size < 512:
            raise InvalidRequest(f"A vocabulary of {self.vocab_size} is too small; give 512 or more.", param="vocab_size")

    @property
    def text_cfg(self) -> dict[str, Any]:
        """The `text_cfg` of open_clip_config.json; `hf_tokenizer_name` makes open_clip take the folder's tokenizer."""
        return {
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
            "hf_tokenizer_name": "tokenizer",
            "width": self.width,
            "heads": self.heads,
            "layers": self.layers,
            "embed_cls": True,
            "no_causal_mask": True,
            "pad_id": 0,
            "eos_id": 3,
            "pool_type": "last",
        }


def build_tower(recipe: TextRecipe) -> Any:
    """The open_clip text transformer of `recipe.text_cfg`, randomly initialised."""
    from open_clip.model import _build_text_tower

    return _build_text_tower(recipe.embed_dim, recipe.text_cfg)


def encode_trimmed(tower: Any, ids: Tensor) -> Tensor:
    """`tower(ids)` (B, E) for ids (B, L) padded to the context length, computed without most of the padding.

    The class token keeps the position it has behind the full context, so the numbers are those of the whole sequence.
    """
    length = min(int((ids != tower.pad_id).sum(1).max()) + 1, ids.shape[1])
    short = ids[:, :length]
    x = tower.token_embedding(short) + tower.positional_embedding[:length]
    last = (tower.cls_emb + tower.positional_embedding[tower.context_length]).expand(len(ids), 1, -1)
    x = torch.cat([x, last.to(x.dtype)], 1)
    mask = tower._build_additive_mask(short, length + 1, x.dtype)
    pooled = tower.ln_final(tower.transformer(x, attn_mask=mask)[:, -1])
    return pooled @ tower.text_projection  # type: ignore[no-any-return]
