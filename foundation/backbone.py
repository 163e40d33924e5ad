"""Backbone: an image tower and a text tower that meet in one embedding space.

Pixels come from `preprocess.py` under the backbone's `contract`; the towers are in `towers/`; `checkpoint.py` opens
one from disk. Knows nothing of adapters beyond naming the linear maps they may bind to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.binding import bind, build_open_clip, input_contract
from foundation.errors import CheckpointRefused
from foundation.preprocess import InputContract
from foundation.towers.rewriting import image_tower
from foundation.towers.text import text_tower
from foundation.towers.tower import ImageTower, TowerOutput

Tokenizer = Callable[[list[str]], Tensor]
"""Strings -> token ids (B, T), padded to the text tower's full context length (SigLIP needs exactly that)."""


@dataclass(frozen=True)
class ImageFeatures:
    """What one forward pass of the image tower yields.

    embedding: (B, E) float32, L2-normalised.
    tokens: (B, N, D) patch tokens of the last block, before the final norm (what LLaVA reads as feature layer -1),
        row by row over the grid, without class token.
    levels: four maps (B, D_l, H_l, W_l) at about 1/4, 1/2, 3/4 and the end of the depth, first to last.
    grid: (h, w) with h * w = N; row 0 is the top of the film, column 0 its left edge as displayed.
    """

    embedding: Tensor
    tokens: Tensor
    levels: tuple[Tensor, ...]
    grid: tuple[int, int]


class Backbone(nn.Module):
    """Both towers, frozen and in evaluation mode; gradients flow through to whatever an adapter adds.

    is_sigmoid: whether `logit_scale * similarity + logit_bias` is meant for a sigmoid (SigLIP) or a softmax (CLIP).
    fingerprint: SHA-256 over weights and config; adapters name the one they were made for.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        contract: InputContract,
        *,
        embed_dim: int,
        fingerprint: str = "",
    ) -> None:
        """model: an open_clip CustomTextCLIP, which is taken apart and must not be used afterwards."""
        super().__init__()
        parts: Any = model.eval().requires_grad_(False)
        self.image_tower: ImageTower = image_tower(parts.visual)
        self.text_tower = text_tower(parts.text)
        self.tokenizer = tokenizer
        self.contract = contract
        self.embed_dim = embed_dim
        self.width = self.image_tower.width
        self.logit_scale = float(parts.logit_scale.exp())
        self.is_sigmoid = parts.logit_bias is not None
        self.logit_bias = float(parts.logit_bias) if self.is_sigmoid else 0.0
        self.fingerprint = fingerprint
        self.requires_grad_(False).eval()

    @classmethod
    def from_open_clip(
        cls,
        config: Mapping[str, Any],
        state: Mapping[str, Tensor],
        tokenizer: Tokenizer,
        *,
        fingerprint: str = "",
    ) -> Backbone:
        """From the content of open_clip_config.json and a state dict in open_clip's layout, both left untouched.

        Training uses this on the state of the model in hand; `open_checkpoint` on the tensors of a file.
        """
        model = build_open_clip(config, custom_text=True)
        bind(model, state)
        return cls(
            model,
            tokenizer,
            input_contract(config, model),
            embed_dim=int(config["model_cfg"]["embed_dim"]),
            fingerprint=fingerprint,
        )

    @property
    def device(self) -> torch.device:
        return next(self.image_tower.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in; embeddings are float32 all the same."""
        return next(self.image_tower.parameters()).dtype

    def pixels(self, films: npt.NDArray[np.uint8]) -> Tensor:
        """Films (B, S, S, 3) uint8 -> (B, 3, S, S) in the tower's dtype, on its device, where they are normalised.

        Bytes are what travels to the device. Equal to `preprocess.normalise` to the bit.
        """
        numbers = ((255.0,), self.contract.mean, self.contract.std)  # tensors all: a plain divisor may be turned into a factor
        white, mean, std = (torch.tensor(one, device=self.device)[:, None, None] for one in numbers)
        channels_first = torch.from_numpy(films).to(self.device).permute(0, 3, 1, 2)
        scaled = channels_first.to(torch.float32, memory_format=torch.contiguous_format)
        return scaled.div_(white).sub_(mean).div_(std).to(self.dtype)

    def encode_image(self, pixels: Tensor) -> ImageFeatures:
        """pixels (B, 3, S, S), normalised under `contract`; any float dtype, on any device."""
        return self.features(self.image_tower(pixels.to(device=self.device, dtype=self.dtype)))

    def features(self, output: TowerOutput) -> ImageFeatures:
        """What the tower's output means, for a caller who ran its blocks by himself."""
        return ImageFeatures(_unit(output.embedding), output.tokens, output.levels, output.grid)

    def encode_text(self, strings: Sequence[str], batch_size: int = 64) -> Tensor:
        """Strings -> (len(strings), E) float32, L2-normalised; the tower runs on at most `batch_size` at a time."""
        if not strings:
            return torch.zeros(0, self.embed_dim, device=self.device)
        token_ids = self.tokenizer(list(strings)).to(self.device)
        return torch.cat([_unit(self.text_tower(chunk)) for chunk in token_ids.split(batch_size)])

    def patch_embeddings(self, features: ImageFeatures) -> Tensor:
        """(B, N, E) float32, L2-normalised: each patch in the embedding space, to be compared with texts.

        See `ImageTower.embed_patches` for what this means under each kind of pooling.
        """
        return _unit(self.image_tower.embed_patches(features.tokens))

    def logits(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """(B, E), (K, E) -> (B, K): scaled similarities, to be read through a sigmoid or a softmax (`is_sigmoid`)."""
        return self.logit_scale * image_embeddings @ text_embeddings.T + self.logit_bias

    def lora_targets(self) -> list[str]:
        """Names, inside `image_tower`, of the linear maps LoRA may adapt."""
        return self.image_tower.lora_targets()

    def text_lora_targets(self) -> list[str]:
        """Names, inside `text_tower`, of the linear maps LoRA may adapt."""
        return self.text_tower.lora_targets()


def _unit(embedding: Tensor) -> Tensor:
    return F.normalize(embedding.float(), dim=-1)


def require_finite(backbone: Backbone) -> None:
    """Raise CheckpointRefused, naming the tensor, where a weight is not a finite number."""
    for name, tensor in backbone.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointRefused(f"The tensor `{name}` holds values that are not numbers. Get the file again.")
