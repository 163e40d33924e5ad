"""DecoderRecipe: the shape of a decoder and the course it is taught by."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.decoder import DecoderShape
from foundation.errors import InvalidRequest


@dataclass(frozen=True)
class DecoderRecipe:
    """How the decoder is built and taught.

    turns, length: at most, of one conversation; length in words and marks, without the film's patch tokens.
    """

    width: int = 256
    layers: int = 6
    heads: int = 4
    key_value_heads: int = 2
    mlp_width: int = 512
    context: int = 1024
    phantoms: int = 5000
    films: int = 2000
    held_out: int = 200
    steps: int = 1500
    batch: int = 20
    turns: int = 7
    length: int = 300
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 80
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("phantoms", "held_out", "steps", "batch", "turns", "length"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}; give 1 or more.", param=name)

    def shape(self, image_width: int, vocab_size: int) -> DecoderShape:
        return DecoderShape(
            image_width,
            vocab_size,
            self.width,
            self.layers,
            self.heads,
            self.key_value_heads,
            self.mlp_width,
            self.context,
        )
