"""LoRA without labels: films altered as another scanner or position would alter them keep the base's embedding.

With a hundred patients a tower must not learn the outcome: it would know every training film by heart, and cross-fitting
would not be honest. So the tower learns only what needs no outcome. The target of every altered view is what the frozen
base says of the film itself; validation measures how well that holds on films not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.tasks.heads import standardised
from foundation.backbone import ImageFeatures
from training.augment import AugmentStrength
from training.finetuning.adapted_tower import AdaptedTower
from training.finetuning.job import TrainableBackbone
from training.finetuning.trunk_cache import TrunkCache

Films = npt.NDArray[np.uint8]


class SteadyTower(AdaptedTower):
    """The adapted tower alone."""

    def forward(self, batch: Mapping[str, Any]) -> ImageFeatures:
        return self.features(batch)


class InvarianceTrainee:
    """films: {"train", "val"} (N, S, S, C). Views are made once; view 0 is the film itself, whose features are kept."""

    def __init__(
        self,
        model: SteadyTower,
        backbone: TrainableBackbone,
        films: Mapping[str, Films],
        cache: Path,
        *,
        views: int,
        strength: AugmentStrength,
        batch_size: int,
        precision: str,
        seed: int,
        is_quiet: bool = False,
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.trunk = {
            split: TrunkCache.build(
                backbone.image_tower,
                backbone.fingerprint,
                own,
                backbone.contract,
                cache,
                first_block=model.first_block,
                views=views,
                strength=strength,
                seed=seed,
                precision=precision,
                is_quiet=is_quiet,
            )
            for split, own in films.items()
        }
        # NOTE: taken before the first step, while LoRA adds nothing: these are the frozen base's.
        self.target = {split: self._features(model, split, 0) for split in films}

    def plan(self, epoch: int) -> Sequence[Sequence[tuple[int, int]]]:
        """Batches of (film, view): every film once, in one of its altered views."""
        random = np.random.default_rng((self.seed, epoch))
        count, views = self.trunk["train"].hidden.shape[:2]
        shown: list[int] = np.asarray(random.integers(1, views, size=count)).tolist()
        order: list[int] = random.permutation(np.arange(count)).tolist()
        draws = list(zip(order, shown, strict=True))
        return [draws[start : start + self.batch_size] for start in range(0, count, self.batch_size)]

    def load(self, draws: Sequence[tuple[int, int]]) -> dict[str, Any]:
        films, views = [film for film, _ in draws], [view for _, view in draws]
        trunk, (embedding, last) = self.trunk["train"], self.target["train"]
        batch = {"hidden": trunk.state(films, views), "grid": trunk.grid}
        return batch | {"embedding": embedding[films], "last": last[films]}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, float]]:
        """Distance of the embeddings, and of what the last level shows on the whole (places move with the view)."""
        features = model({"hidden": batch["hidden"], "grid": batch["grid"]})
        apart = (1 - (features.embedding * batch["embedding"]).sum(dim=1)).mean()
        return apart + 0.1 * F.mse_loss(_last(features), batch["last"]), {"apart": float(apart.detach())}

    @torch.inference_mode()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Mean cosine of an altered film's embedding to the base's of the film itself, on `val`."""
        model.eval()
        views = self.trunk["val"].hidden.shape[1]
        embedding = self.target["val"][0]
        cosines = [(self._features(model, "val", view)[0] * embedding).sum(dim=1) for view in range(1, views)]
        return {"agreement": float(torch.cat(cosines).mean())}

    @torch.no_grad()
    def _features(self, model: nn.Module, split: str, view: int) -> tuple[Tensor, Tensor]:
        trunk, device = self.trunk[split], next(model.parameters()).device
        parts = []
        for start in range(0, len(trunk.hidden), 32):
            films = list(range(start, min(start + 32, len(trunk.hidden))))
            hidden = trunk.state(films, [view] * len(films)).to(device)
            features = model({"hidden": hidden, "grid": trunk.grid})
            parts.append((features.embedding.cpu(), _last(features).cpu()))
        embedding, last = (torch.cat(part) for part in zip(*parts, strict=True))
        return embedding, last


def _last(features: ImageFeatures) -> Tensor:
    """(B, D): the last level, each place standardised, averaged over places."""
    return standardised(features.levels[-1]).mean(dim=(2, 3))
