"""Training of the classification task: an image tower with LoRA, a head that starts as zero-shot, and its losses.

`ClassificationTrainee` is what `loop.py` sees; `finetune_classification.py` feeds it films and makes
the adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.lora import targets_from
from adapters.tasks.classification import ClassificationHead, Prompts
from foundation.towers import block_index
from training.adapted_tower import AdaptedTower
from training.finetune_job import TrainableBackbone
from training.finetune_recipe import FinetuneRecipe, TrainingRecipe
from training.manifest import Row
from training.metrics import auroc
from training.trunk_cache import TrunkCache, augmented_pixels, to_pixels

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Films:
    """The films of one split: pixels (N, S, S, C) uint8 and truth (N, K), 1 where a label holds."""

    rows: tuple[Row, ...]
    pixels: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.float32]

    @property
    def patients(self) -> list[str]:
        return [row.patient_id for row in self.rows]


class AdaptedClassifier(AdaptedTower):
    """The adapted tower with the classification head, started from text."""

    head: ClassificationHead

    def __init__(self, backbone: TrainableBackbone, recipe: FinetuneRecipe, labels: Sequence[str]) -> None:
        head = ClassificationHead(len(labels), backbone.embed_dim, backbone.width)
        head.start_from_text(backbone, Prompts.from_templates(labels, recipe.head.templates, recipe.head.negatives))
        super().__init__(backbone, recipe.lora, head)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        logits: Tensor = self.head(self.features(batch))
        return logits


class ClassificationTrainee:
    """Draws films by patient, from the trunk cache or augmented anew; validates on the films of `val`."""

    def __init__(
        self,
        backbone: TrainableBackbone,
        recipe: FinetuneRecipe,
        films: Mapping[str, Films],
        cache: Path,
        *,
        is_quiet: bool = False,
    ) -> None:
        self.recipe, self.films, self.contract = recipe, films, backbone.contract
        self.truth = torch.from_numpy(films["train"].truth)
        self.weights = positive_weights(self.truth, recipe.training.max_positive_weight)
        self.chances = patient_chances(films["train"].patients, recipe.data.patient_balance)
        first_block = block_index(targets_from(backbone.lora_targets(), recipe.lora.first_block)[0])
        self.trunk = {
            split: TrunkCache.build(
                backbone.image_tower,
                backbone.fingerprint,
                films[split].pixels,
                self.contract,
                cache,
                first_block=first_block,
                views=views,
                strength=recipe.views.strength,
                seed=recipe.seed,
                precision=recipe.training.precision,
                is_quiet=is_quiet,
            )
            for split, views in (("train", recipe.views.cached), ("val", 1))
            if recipe.views.cached
        }

    def plan(self, epoch: int) -> Sequence[Sequence[tuple[int, int]]]:
        """Batches of (film, view seed); as many films as there are, patients balanced as the recipe says."""
        random = np.random.default_rng((self.recipe.seed, epoch))
        count, size = len(self.chances), self.recipe.training.batch_size
        films = random.choice(count, size=count, p=self.chances).tolist()
        seeds = random.integers(0, 2**31, size=count).tolist()
        draws = list(zip(films, seeds, strict=True))
        return [draws[start : start + size] for start in range(0, count, size)]

    def load(self, draws: Sequence[tuple[int, int]]) -> dict[str, Any]:
        films = [film for film, _ in draws]
        batch: dict[str, Any] = {"truth": self.truth[films]}
        if trunk := self.trunk.get("train"):
            views = [seed % trunk.hidden.shape[1] for _, seed in draws]
            return batch | {"hidden": trunk.state(films, views), "grid": trunk.grid}
        shown = np.asarray(self.films["train"].pixels[films])
        return batch | {"pixels": augmented_pixels(shown, self.contract, self.recipe.views.strength, draws[0][1])}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, float]]:
        logits, truth = model(batch).float(), batch["truth"]
        if not self.recipe.data.multi_label:
            smoothing = self.recipe.training.label_smoothing
            return F.cross_entropy(logits, truth.argmax(dim=1), label_smoothing=smoothing), {}
        return multi_label_loss(logits, truth, self.weights.to(logits.device), self.recipe.training), {}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Mean AUROC over the labels on `val`."""
        trunk = self.trunk.get("val")
        scores = self.logits(model, self.films["val"]) if trunk is None else _logits_from_trunk(model, trunk)
        return {"auroc": mean_auroc(rankable(scores, self.recipe.data.multi_label), self.films["val"].truth)}

    @torch.inference_mode()
    def logits(self, model: nn.Module, films: Films, batch_size: int = 32) -> Floats:
        """(N, K) raw outputs through the whole tower in float32, as serving computes them."""
        model.eval()
        device = next(model.parameters()).device
        rows = [
            model({"pixels": to_pixels(np.asarray(films.pixels[start : start + batch_size]), self.contract).to(device)})
            for start in range(0, len(films.rows), batch_size)
        ]
        return np.asarray(torch.cat(rows).double().cpu().numpy())


def _logits_from_trunk(model: nn.Module, trunk: TrunkCache, batch_size: int = 64) -> Floats:
    device = next(model.parameters()).device
    rows = []
    for start in range(0, len(trunk.hidden), batch_size):
        films = range(start, min(start + batch_size, len(trunk.hidden)))
        rows.append(model({"hidden": trunk.state(films, [0] * len(films)).to(device), "grid": trunk.grid}))
    return np.asarray(torch.cat(rows).double().cpu().numpy())


def rankable(logits: Floats, is_multi_label: bool) -> Floats:
    """(N, K) scores by which films may be ranked for a label; of classes only the log probabilities are comparable."""
    if is_multi_label:
        return logits
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def mean_auroc(scores: Floats, truth: npt.NDArray[np.float32]) -> float:
    """Mean over the labels that have both positives and negatives; 0.5 where none has."""
    values = np.array([auroc(scores[:, k], truth[:, k] > 0.5)[0] for k in range(truth.shape[1])])
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.5


def patient_chances(patients: Sequence[str], balance: float) -> Floats:
    """How likely each film is drawn: films of a patient with n films weigh n^-balance."""
    films_of = Counter(patients)
    weights = np.array([films_of[patient] ** -balance for patient in patients])
    return np.asarray(weights / weights.sum())


def positive_weights(truth: Tensor, limit: float) -> Tensor:
    """(N, K) -> (K,): the square root of negatives over positives, from 1 to `limit`."""
    positives = truth.sum(dim=0).clamp(min=1.0)
    return ((len(truth) - positives) / positives).sqrt().clamp(1.0, limit)


def multi_label_loss(logits: Tensor, truth: Tensor, weights: Tensor, recipe: TrainingRecipe) -> Tensor:
    """Weighted cross-entropy of each label, or the asymmetric loss (Ridnik 2021): easy negatives hardly count."""
    target = truth * (1 - 2 * recipe.label_smoothing) + recipe.label_smoothing
    if recipe.loss == "bce":
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
    p = torch.sigmoid(logits)
    shifted = (p - 0.05).clamp(min=0.0, max=1 - 1e-6)
    positive = weights * target * F.logsigmoid(logits) * (1 - p)
    negative = (1 - target) * torch.log1p(-shifted) * shifted**2
    return -(positive + negative).mean()
