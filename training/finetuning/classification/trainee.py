"""Training of the classification task: an image tower with LoRA and a head that starts as zero-shot.

`ClassificationTrainee` is what `loop.py` sees; `finetune.py` feeds it films and makes the adapter. Losses
stand in `label_losses.py`, what is known of a film in `label_table.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adapters.lora import targets_from
from adapters.tasks.classification import NORMAL, ClassificationHead, Prompts
from foundation.look import check_sizes, further_looks
from foundation.towers.tower import block_index
from training.finetuning.adapted_tower import AdaptedTower, level_widths
from training.finetuning.classification.label_losses import LabelLoss
from training.finetuning.classification.label_table import LabelTable
from training.finetuning.job import TrainableBackbone
from training.finetuning.recipe import FinetuneRecipe, HeadRecipe, PaceRecipe, TrainingRecipe
from training.finetuning.trunk_cache import TrunkCache, augmented_pixels, look_cache, to_pixels
from training.level_fit import Seen
from training.loop import ParameterGroup
from training.manifests.manifest import Row
from training.measuring.metrics import auroc

Floats = npt.NDArray[np.float64]
STUDY_HIDDEN = 32
FILMS_OF_STUDY = 4  # in a training batch; a study of more shows others in other epochs


@dataclass(frozen=True, eq=False)
class Films:
    """The films of one split: pixels (N, S, S, C) uint8 and truth (N, K), 1 where a label holds, NaN where unknown."""

    rows: tuple[Row, ...]
    pixels: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.float32]

    @property
    def patients(self) -> list[str]:
        return [row.patient_id for row in self.rows]

    def take(self, places: npt.NDArray[np.int64]) -> Films:
        """These films, in this order."""
        return Films(tuple(self.rows[place] for place in places), np.asarray(self.pixels[places]), self.truth[places])

    @cached_property
    def study(self) -> npt.NDArray[np.int64]:
        """(N,) which study each film is of, from 0 on in order of appearance; a row without `study_id` is one of its own."""
        names = [str(row.get("study_id") or f"row {row.id}") for row in self.rows]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([numbers[name] for name in names], dtype=np.int64)

    def by_study(self) -> Films:
        """One entry a study: its first row, no pixels; a label holds where it holds for any of its films."""
        first = np.unique(self.study, return_index=True)[1]
        truth = np.full((len(first), self.truth.shape[1]), np.nan, np.float32)
        for place, number in enumerate(self.study):
            truth[number] = np.fmax(truth[number], self.truth[place])
        return Films(tuple(self.rows[place] for place in first), self.pixels[:0], truth)


class AdaptedClassifier(AdaptedTower):
    """The adapted tower with the classification head, started from text."""

    head: ClassificationHead

    def __init__(self, backbone: TrainableBackbone, recipe: FinetuneRecipe, table: LabelTable) -> None:
        pools = recipe.head.pools
        widths = level_widths(backbone) if pools else ()
        hidden = STUDY_HIDDEN if recipe.data.studies else 0
        shape = (len(table.labels), backbone.embed_dim, backbone.width, widths, pools, hidden)
        head = ClassificationHead(*shape, recipe.head.sizes, recipe.head.mirrored, recipe.head.size_pools)
        head.start_from_text(backbone, prompts_of(table, recipe.head))
        super().__init__(backbone, recipe.lora, head)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, K), or (number of studies, K) where the batch says which `study` each film is of."""
        features = self.features(batch)
        pooled = self.pooled(batch, features.levels)
        if "study" in batch:
            return self.head.of_studies(features, batch["study"], pooled)
        logits: Tensor = self.head(features, pooled)
        return logits

    def pooled(self, batch: Mapping[str, Any], levels: Sequence[Tensor]) -> Tensor | None:
        """(B, F) pooled levels: those below the first adapted block from the cache, the others as they are now.

        Those of further looks, which no adapter touches, are `beside` in the batch.
        """
        if self.head.levels is None:
            return None
        own = self.pooled_levels(batch, levels, self.head.levels.pools)
        return self.head.join(torch.cat([own, batch["beside"]], dim=1)) if "beside" in batch else own

    def groups(self, pace: PaceRecipe) -> list[ParameterGroup]:
        """The reading of the levels, fitted already, moves at a rate and with a decay of its own."""
        lora, head = super().groups(pace)
        if self.head.levels is None or not isinstance(pace, TrainingRecipe):
            return [lora, head]
        reading = list(self.head.levels.parameters())
        others = [one for one in head.parameters if all(one is not other for other in reading)]
        levels = ParameterGroup("levels", reading, pace.level_rate, pace.level_decay)
        return [lora, ParameterGroup("head", others, head.learning_rate), levels]


class ClassificationTrainee:
    """Draws films by patient, from the trunk cache or augmented anew; validates on the films of `val`."""

    def __init__(
        self,
        backbone: TrainableBackbone,
        recipe: FinetuneRecipe,
        table: LabelTable,
        films: Mapping[str, Films],
        cache: Path,
        *,
        is_quiet: bool = False,
    ) -> None:
        self.recipe, self.table, self.films, self.contract = recipe, table, films, backbone.contract
        self.truth = torch.from_numpy(films["train"].truth)
        self.criterion = LabelLoss(recipe.training, table.exclusive, self.truth)
        self.chances = patient_chances(films["train"].patients, recipe.data.patient_balance)
        self.films_of: list[list[int]] = []
        if recipe.data.studies:
            self.films_of = [
                np.flatnonzero(films["train"].study == one).tolist() for one in range(films["train"].study.max() + 1)
            ]
            self.study_truth = torch.from_numpy(films["train"].by_study().truth)
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
                pools=recipe.head.pools,
                is_quiet=is_quiet,
            )
            for split, views in (("train", recipe.views.cached), ("val", 1))
            if recipe.views.cached
        }
        self.beside: dict[str, npt.NDArray[np.float32]] = {}
        check_sizes(backbone.image_tower.side_step, recipe.head.sizes)
        if looks := further_looks(recipe.head.sizes, recipe.head.mirrored):
            self.beside = {
                split: look_cache(
                    backbone.image_tower,
                    backbone.fingerprint,
                    held.pixels,
                    self.contract,
                    cache,
                    looks=looks,
                    pools=recipe.head.pools,
                    size_pools=recipe.head.size_pools,
                    precision=recipe.training.precision,
                    is_quiet=is_quiet,
                )
                for split, held in films.items()
            }

    def plan(self, epoch: int) -> Sequence[Sequence[tuple[int, int]]]:
        """Batches of (film, view seed); as many films as there are, patients balanced as the recipe says."""
        random = np.random.default_rng((self.recipe.seed, epoch))
        if self.films_of:
            return self._plan_studies(random)
        count, size = len(self.chances), self.recipe.training.batch_size
        films = random.choice(count, size=count, p=self.chances).tolist()
        seeds = random.integers(0, 2**31, size=count).tolist()
        draws = list(zip(films, seeds, strict=True))
        return [draws[start : start + size] for start in range(0, count, size)]

    def _plan_studies(self, random: np.random.Generator) -> Sequence[Sequence[tuple[int, int]]]:
        """Batches of whole studies, of each at most FILMS_OF_STUDY films; `batch_size` counts studies."""
        weights = np.array([self.chances[films].sum() for films in self.films_of])
        size = self.recipe.training.batch_size
        drawn = random.choice(len(weights), size=len(weights), p=weights / weights.sum())
        shown = [random.permutation(self.films_of[one])[:FILMS_OF_STUDY].tolist() for one in drawn]
        return [
            [(film, int(random.integers(2**31))) for films in shown[start : start + size] for film in films]
            for start in range(0, len(shown), size)
        ]

    def load(self, draws: Sequence[tuple[int, int]]) -> dict[str, Any]:
        films = [film for film, _ in draws]
        batch: dict[str, Any] = {"truth": self.truth[films]}
        if self.films_of:
            which, place = np.unique(self.films["train"].study[films], return_inverse=True)
            batch = {"truth": self.study_truth[which], "study": torch.from_numpy(place)}
        if trunk := self.trunk.get("train"):
            views = [seed % trunk.hidden.shape[1] for _, seed in draws]
            return batch | trunk.batch(films, views) | self._beside("train", films)
        shown = np.asarray(self.films["train"].pixels[films])
        return batch | {"pixels": augmented_pixels(shown, self.contract, self.recipe.views.strength, draws[0][1])}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, float]]:
        if self.recipe.training.mixup and not self.films_of:
            return self._mixed_loss(model, batch), {}
        return self.criterion(model(batch).float(), batch["truth"]), {}

    def _mixed_loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Mixup (Zhang 2018) on what enters the model, pixels or cached features: each film with its neighbour in the batch."""
        alpha = self.recipe.training.mixup
        share = float(np.random.beta(alpha, alpha))
        blended = {
            name: share * value + (1 - share) * value.roll(1, dims=0)
            for name, value in batch.items()
            if name in ("pixels", "hidden", "below", "beside")
        }
        logits, truth = model({**batch, **blended}).float(), batch["truth"]
        return share * self.criterion(logits, truth) + (1 - share) * self.criterion(logits, truth.roll(1, dims=0))

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Mean AUROC over the labels on `val`."""
        trunk, films = self.trunk.get("val"), self.films["val"]
        scores = self.logits(model, "val") if self.films_of or trunk is None else self._logits_from_trunk(model, "val", trunk)
        truth = films.by_study().truth if self.films_of else films.truth
        return {"auroc": mean_auroc(rankable(scores, self.table.exclusive), truth)}

    @torch.inference_mode()
    def seen(self, model: AdaptedClassifier, split: str, batch_size: int = 64) -> Seen:
        """What the head has to go by on a split's films, in all their cached views: pooled levels, its logits, the truth."""
        model.eval()
        films, trunk = self.films[split], self.trunk.get(split)
        count, views = len(films.rows), trunk.hidden.shape[1] if trunk else 1
        device = next(model.parameters()).device
        pooled, logits = [], []
        for start in range(0, count * views, batch_size):
            places = range(start, min(start + batch_size, count * views))
            if trunk is None:
                batch = {"pixels": to_pixels(np.asarray(films.pixels[places.start : places.stop]), self.contract)}
            else:
                own = [place % count for place in places]
                batch = trunk.batch(own, [place // count for place in places]) | self._beside(split, own)
            batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            features = model.features(batch)
            found = model.pooled(batch, features.levels)
            assert found is not None
            pooled.append(found.float().cpu())
            logits.append(model.head(features, found).cpu())
        truth = np.tile(films.truth, (views, 1))
        return Seen(torch.cat(pooled).numpy(), torch.cat(logits).double().numpy(), truth)

    @torch.inference_mode()
    def embeddings(self, model: AdaptedClassifier, films: Films, batch_size: int = 32) -> Tensor:
        """(N, E) unit embeddings of the films as they are."""
        model.eval()
        device = next(model.parameters()).device
        rows = []
        for start in range(0, len(films.rows), batch_size):
            pixels = to_pixels(np.asarray(films.pixels[start : start + batch_size]), self.contract).to(device)
            rows.append(model.features({"pixels": pixels}).embedding.cpu())
        return torch.cat(rows)

    @torch.inference_mode()
    def logits(self, model: nn.Module, split: str, batch_size: int = 32) -> Floats:
        """(N, K) raw outputs through the whole tower in float32, as serving computes them; of studies where they are items."""
        model.eval()
        films = self.films[split]
        device = next(model.parameters()).device
        numbers = films.study if self.films_of else np.arange(len(films.rows))
        rows = []
        for chunk in _whole_studies(numbers, batch_size):
            pixels = to_pixels(np.asarray(films.pixels[chunk]), self.contract).to(device)
            own = np.unique(numbers[chunk], return_inverse=True)[1]
            extra = {"study": torch.from_numpy(own).to(device)} if self.films_of else {}
            beside = {name: one.to(device) for name, one in self._beside(split, chunk.tolist()).items()}
            rows.append(model({"pixels": pixels, **extra, **beside}))
        return np.asarray(torch.cat(rows).double().cpu().numpy())

    def _logits_from_trunk(self, model: nn.Module, split: str, trunk: TrunkCache, batch_size: int = 64) -> Floats:
        device = next(model.parameters()).device
        rows = []
        for start in range(0, len(trunk.hidden), batch_size):
            films = range(start, min(start + batch_size, len(trunk.hidden)))
            batch = trunk.batch(films, [0] * len(films)) | self._beside(split, films)
            rows.append(model({name: one.to(device) if isinstance(one, Tensor) else one for name, one in batch.items()}))
        return np.asarray(torch.cat(rows).double().cpu().numpy())

    def _beside(self, split: str, films: Sequence[int]) -> dict[str, Tensor]:
        """The pooled levels of the split's films in further looks, (B, F) under `beside`; nothing where there are none."""
        held = self.beside.get(split)
        return {} if held is None else {"beside": torch.from_numpy(held[list(films)])}


def _whole_studies(numbers: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    """Places of films in batches of about `size`, study by study and never parting one."""
    order = np.argsort(numbers, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(numbers[order])) + 1, len(order))
    chunks: list[npt.NDArray[np.int64]] = []
    start = 0
    for end in ends:
        if end - start >= size or end == len(order):
            chunks.append(order[start:end])
            start = int(end)
    return chunks


def prompts_of(table: LabelTable, recipe: HeadRecipe) -> Prompts:
    """The recipe's templates for each label; "normal", where it is a class, is said by denying the classes beside it."""
    templates, negatives = recipe.templates, recipe.negatives
    plain = Prompts.from_templates(table.labels, templates, negatives)
    positive, negative = list(plain.positive), list(plain.negative)
    for column, label in enumerate(table.labels):
        if label == NORMAL and negatives:
            others = [name for group in table.groups if label in group.labels for name in group.labels if name != label]
            positive[column] = tuple(text.format(name) for text in negatives for name in others)
            negative[column] = tuple(text.format(name) for text in templates for name in others)
    return Prompts(tuple(positive), tuple(negative))


def rankable(logits: Floats, exclusive: Sequence[Sequence[int]] = ()) -> Floats:
    """(N, K) scores by which films may be ranked for a label; of classes only the log probabilities are comparable."""
    scores = logits.copy()
    for columns in exclusive:
        part = logits[:, list(columns)]
        shifted = part - part.max(axis=1, keepdims=True)
        scores[:, list(columns)] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return scores


def mean_auroc(scores: Floats, truth: npt.NDArray[np.float32]) -> float:
    """Mean over the labels that have both positives and negatives among the known; 0.5 where none has."""
    values = []
    for k in range(truth.shape[1]):
        known = ~np.isnan(truth[:, k])
        values.append(auroc(scores[known, k], truth[known, k] > 0.5)[0] if known.any() else np.nan)
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.5


def patient_chances(patients: Sequence[str], balance: float) -> Floats:
    """How likely each film is drawn: films of a patient with n films weigh n^-balance."""
    films_of = Counter(patients)
    weights = np.array([films_of[patient] ** -balance for patient in patients])
    return np.asarray(weights / weights.sum())
