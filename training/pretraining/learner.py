"""What pretraining trains: the image tower, the text projection, and heads that are thrown away afterwards.

State keys of the towers are open_clip's own (`visual.*`), see `assemble.py` for how they become a checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from foundation.blocks import use_patch_convolutions
from foundation.device import autocast_bf16
from foundation.errors import InvalidRequest
from foundation.phantom import FINDINGS as PHANTOM_FINDINGS
from training.manifests.sentences import target_prompts
from training.pretraining import objectives

PHANTOM_WEIGHT = 0.6
FINE_PHANTOM_WEIGHT = 1.5
FINE_PHANTOMS = ("nodule", "line", "tube", "atelectasis")  # thin or small: learnt last
WEIGHTS = {"tuberculosis": 5.0, "child pneumonia": 3.0, "bacterial": 4.0, "age": 0.5, "female": 0.5}


@dataclass(frozen=True)
class ModelRecipe:
    """timm's tower by its registered name, so that any open_clip opens the result.

    text_folder holds the distilled text tower.
    """

    timm_name: str
    image_size: int
    embed_dim: int
    text_folder: str
    mean: float = 0.5
    std: float = 0.25
    drop_path: float = 0.1


class Learner(nn.Module):
    """Image tower, text projection and the heads that only training needs."""

    def __init__(self, recipe: ModelRecipe, size: int, target_names: tuple[str, ...], priors: Tensor) -> None:
        super().__init__()
        self.visual = build_visual(recipe, size)
        width = self.visual.trunk.num_features
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-4.0))
        stride = self.visual.trunk.feature_info[-1]["reduction"]
        self.masked = objectives.MaskedFilm(width, stride)
        self.gradients = objectives.MaskedGradients(width, stride)
        self.findings = objectives.FindingSupervision(width, priors, target_weights(target_names))
        self.target_names = target_names
        self.text_projection: nn.Parameter | None = None
        self.captions: objectives.Captioning | None = None

    def add_text(self, text: TextSide) -> None:
        """Only the text tower's projection is trained: its language stays as it was distilled (LiT, Zhai 2022)."""
        self.text_projection = nn.Parameter(text.projection.clone())
        self.captions = objectives.Captioning(self.visual.trunk.num_features, text.vocabulary, text.pad_id)

    def feature_map(self, films: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D, h, w), after the tower's last norm."""
        features: Tensor = self.visual.trunk.forward_features(films)
        return features

    def project(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., E) unit length, by the tower's own projection."""
        return F.normalize(self.visual.head(features).float(), dim=-1)

    def project_text(self, pooled: Tensor) -> Tensor:
        """(B, width) pooled text features -> (B, E) unit length."""
        assert self.text_projection is not None
        return F.normalize(pooled @ self.text_projection, dim=-1)


def target_weights(target_names: Sequence[str]) -> Tensor:
    """(K,) How much each known target counts.

    The loss averages over everything known of a batch, of which a target that one small source knows is a tiny part:
    those count several times; what is easy and many (phantoms) or no finding at all (age, sex) counts less.
    """
    return torch.tensor([_weight(name) for name in target_names])


def _weight(name: str) -> float:
    if not name.startswith("phantom "):
        return WEIGHTS.get(name, 1.0)
    return FINE_PHANTOM_WEIGHT if name.split()[1] in FINE_PHANTOMS else PHANTOM_WEIGHT


def build_visual(recipe: ModelRecipe, size: int) -> Any:
    """open_clip's TimmModel; a trunk with position embeddings, its only size-bound tensors, is made for `size` pixels."""
    import timm
    from open_clip.timm_model import TimmModel

    visual = TimmModel(recipe.timm_name, recipe.embed_dim, image_size=recipe.image_size, pool="avg", proj="linear")
    known = timm.get_pretrained_cfg(recipe.timm_name)  # None for a tower that timm does not carry itself
    is_size_bound = known is None or known.fixed_input_size
    bound = {"img_size": size} if is_size_bound else {}
    visual.trunk = timm.create_model(recipe.timm_name, drop_path_rate=recipe.drop_path, **bound)
    visual.trunk.reset_classifier(0, global_pool="avg")
    use_patch_convolutions(visual.trunk)
    return visual.to(memory_format=torch.channels_last)


def fit_positions(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with position embeddings (1, D, h, w) resized to the wanted grid where it differs."""
    fitted = dict(state)
    for name, tensor in state.items():
        if "pos_embed" in name and name in wanted and tensor.shape != wanted[name].shape:
            grid = wanted[name].shape[-2:]
            fitted[name] = F.interpolate(tensor.float(), grid, mode="bicubic", antialias=True)
    return fitted


class TextSide:
    """The frozen text tower as a table: token ids and pooled features (before the projection) of every sentence used."""

    def __init__(self, folder: Path, sentences: Iterable[str]) -> None:
        from training.pretraining.text.recipe import encode_trimmed

        tower, tokenizer = load_text_tower(folder)
        self.projection = tower.text_projection.detach().clone()
        self.vocabulary, self.pad_id = int(tower.token_embedding.num_embeddings), int(tower.pad_id)
        ordered = sorted(set(sentences), key=lambda sentence: (len(sentence), sentence))
        self._place = {sentence: index for index, sentence in enumerate(ordered)}
        self._ids = tokenizer(ordered)
        tower.text_projection = nn.Parameter(torch.eye(len(self.projection)))
        with torch.no_grad(), autocast_bf16("cpu"):
            pooled = [encode_trimmed(tower, part).float() for part in self._ids.split(256)]
        self._pooled = torch.cat(pooled)

    def to(self, device: torch.device) -> TextSide:
        """This, with its tables on the device."""
        self._ids, self._pooled = self._ids.to(device), self._pooled.to(device)
        return self

    def pooled(self, sentences: Sequence[str]) -> Tensor:
        """(B, width)"""
        return self._pooled[[self._place[sentence] for sentence in sentences]]

    def ids(self, sentences: Sequence[str]) -> Tensor:
        """(B, T) padded token ids"""
        ids: Tensor = self._ids[[self._place[sentence] for sentence in sentences]]
        return ids


def load_text_tower(folder: Path) -> tuple[Any, Any]:
    """The distilled tower (open_clip's native text transformer) and its tokenizer; see `text/language.py`."""
    from open_clip.model import _build_text_tower
    from open_clip.tokenizer import HFTokenizer

    if not (folder / "text.safetensors").is_file():
        raise InvalidRequest(f"{folder} holds no text tower; run the recipe's language stage first.", param="text_folder")
    config = json.loads((folder / "text_cfg.json").read_text())
    tensors = load_file(folder / "text.safetensors")
    tower = _build_text_tower(tensors["text.text_projection"].shape[1], config)
    tower.load_state_dict({name.removeprefix("text."): tensor for name, tensor in tensors.items()})
    return tower.eval(), HFTokenizer(str(folder), context_length=config["context_length"])


class Prompts:
    """Positive and negative sentences for each target that has words; one of each is drawn per step."""

    def __init__(self, target_names: tuple[str, ...]) -> None:
        pairs = {name: pair for name in target_names if (pair := target_prompts(name)) is not None}
        self.columns = [target_names.index(name) for name in pairs]
        self._pairs = list(pairs.values())
        self.sentences = {sentence for pair in pairs.values() for side in pair for sentence in side}
        self._patches = [pairs[f"phantom {name}"][0] for name in PHANTOM_FINDINGS]

    def draw(self, random: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
        """A positive and a negative sentence for each of `columns`, and one for each phantom finding's patches."""
        return (
            [str(random.choice(positive)) for positive, _ in self._pairs],
            [str(random.choice(negative)) for _, negative in self._pairs],
            [str(random.choice(words)) for words in self._patches],
        )
