"""Training of the anomaly task: the films, the trained branch, and what is computed from normal films afterwards.

    normal     every patch is known to be normal
    synthetic  normal films with a phantom's lesion: every patch is known
    abnormal   real ones, where the manifest has them: only the film as a whole is known

Validation ranks the `choose` films; the films that p-values rest on are never seen here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.tasks.anomaly import QUANTILES, AnomalyHead, AnomalyOutput, greedy_coreset, mean_rank
from adapters.tasks.reference import NormalReference
from foundation.backbone import ImageFeatures
from foundation.errors import InvalidRequest
from foundation.preprocess import InputContract
from training.augment import AugmentStrength
from training.finetuning.adapted_tower import AdaptedTower
from training.finetuning.anomaly.synthetic import draw_lesion, lay_over
from training.finetuning.classification.trainee import patient_chances
from training.finetuning.job import TrainableBackbone
from training.finetuning.trunk_cache import TrunkCache, augmented_pixels, to_pixels
from training.level_fit import Seen, Truth, fit_levels
from training.manifests.manifest import Row
from training.measuring.metrics import PatientBootstrap, Statistic, auroc, difference

Floats = npt.NDArray[np.float64]
NORMAL, SYNTHETIC, ABNORMAL = 0, 1, 2
PATCH_WEIGHT = 0.5
COVERED = 0.2  # share of a patch that a lesion must cover
SHARES = (0.0, 0.25, 0.5, 1.0)  # of what gradients trained, beside the reading of the levels
WEIGHT_STEPS = (0.0, 0.25, 0.5, 1.0)
WEIGHT_RESAMPLES = 300
USEFUL = 0.55  # AUROC of a branch alone
WORSE = 2.0  # standard errors behind the best branch at which another is dropped
SAMPLED_PATCHES = 16_384  # what the coreset is chosen from
FEW = 20.0  # normal films from which on the spread at one place counts for more than the spread everywhere


@dataclass(frozen=True, eq=False)
class SortedFilms:
    """Films of one role: pixels (N, S, S, C), kind (N,), and masks (N, S, S) of what a synthetic lesion covers."""

    pixels: npt.NDArray[np.uint8]
    kind: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]
    patients: tuple[str, ...]
    rows: tuple[Row, ...] = ()

    @property
    def is_abnormal(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.kind != NORMAL)

    def of(self, kind: int) -> npt.NDArray[np.uint8]:
        return np.asarray(self.pixels[self.kind == kind])


class AdaptedDetector(AdaptedTower):
    """The adapted tower with the anomaly head."""

    head: AnomalyHead

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The trained branch: patch logits (B, h, w) and film logits (B,)."""
        maps, films = self.head.trained(self.features(batch))
        return maps, films

    def looked_at(self, pixels: Tensor) -> tuple[ImageFeatures, Tensor]:
        """What the head reads: features and patch embeddings (B, N, E)."""
        features = self.features({"pixels": pixels})
        return features, F.normalize(self.tower.embed_patches(features.tokens).float(), dim=-1)

    def every_branch(self, pixels: Tensor) -> AnomalyOutput:
        output: AnomalyOutput = self.head(*self.looked_at(pixels))
        return output


class AnomalyTrainee:
    """Draws as many normal films as others, normal ones by patient, from the trunk cache."""

    def __init__(
        self,
        model: AdaptedDetector,
        backbone: TrainableBackbone,
        films: Mapping[str, SortedFilms],
        cache: Path,
        *,
        views: int,
        strength: AugmentStrength,
        batch_size: int,
        synthetic_share: float,
        patient_balance: float,
        precision: str,
        seed: int,
        is_quiet: bool,
    ) -> None:
        highest = sorted(model.tower.taps)[-2] + 1
        if model.first_block > highest:
            raise InvalidRequest(
                f"lora.first_block is {model.first_block}; anomaly detection reads the last two levels, so it can be at most "
                f"{highest} on this tower.",
                param="first_block",
            )
        self.films, self.batch_size, self.seed, self.balance = films, batch_size, seed, patient_balance
        self.groups = _groups(films["train"].kind, synthetic_share)
        self.chances = {kind: _chances(films["train"], kind, patient_balance) for kind in self.groups}
        self.trunk = {
            role: TrunkCache.build(
                model.tower,
                backbone.fingerprint,
                films[role].pixels,
                backbone.contract,
                cache,
                first_block=model.first_block,
                views=count,
                strength=strength,
                seed=seed,
                precision=precision,
                pools=model.head.reader.pools if model.head.reader is not None else (),
                is_quiet=is_quiet,
            )
            for role, count in (("train", views), ("choose", 1))
        }

    def plan(self, epoch: int) -> Sequence[Sequence[tuple[int, int]]]:
        """Batches of (film, view). An epoch is as many draws as there are films; a synthetic film has one view."""
        random = np.random.default_rng((self.seed, epoch))
        kinds = random.choice(list(self.groups), size=len(self.films["train"].kind), p=list(self.groups.values()))
        views = self.trunk["train"].hidden.shape[1]
        draws = []
        for kind in kinds.tolist():
            places, chances = self.chances[kind]
            view = 0 if kind == SYNTHETIC else int(random.integers(views))
            draws.append((int(random.choice(places, p=chances)), view))
        return [draws[start : start + self.batch_size] for start in range(0, len(draws), self.batch_size)]

    def load(self, draws: Sequence[tuple[int, int]]) -> dict[str, Any]:
        films, views = [film for film, _ in draws], [view for _, view in draws]
        train, trunk = self.films["train"], self.trunk["train"]
        return {
            "hidden": trunk.state(films, views),
            "grid": trunk.grid,
            "abnormal": torch.from_numpy(train.is_abnormal[films]).float(),
            "masks": torch.from_numpy(train.masks[films]).float(),
            "known": torch.from_numpy(train.kind[films] != ABNORMAL),
        }

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, float]]:
        maps, films = model(batch)
        whole = F.binary_cross_entropy_with_logits(films.float(), batch["abnormal"])
        covered = F.adaptive_avg_pool2d(batch["masks"][:, None], maps.shape[-2:])[:, 0]
        target, known = (covered >= COVERED).float(), batch["known"]
        if not known.any():
            return whole, {}
        share = target[known].mean().clamp(0.02, 0.5)  # lesions cover little: let them count for as much as the rest
        each = F.binary_cross_entropy_with_logits(maps[known].float(), target[known], pos_weight=(1 - share) / share)
        return whole + PATCH_WEIGHT * each, {"film_loss": float(whole.detach()), "patch_loss": float(each.detach())}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """AUROC of the trained branch on the `choose` films."""
        return {"auroc": float(auroc(self.logits(model), self.films["choose"].is_abnormal)[0])}

    @torch.inference_mode()
    def seen(self, model: AdaptedDetector, role: str, batch_size: int = 64) -> Seen:
        """The role's real films: every level that the head's reader reads, pooled, and the truth (N, 1)."""
        films, trunk, device = self.films[role], self.trunk[role], next(model.parameters()).device
        places, pooled = np.flatnonzero(films.kind != SYNTHETIC).tolist(), []
        assert model.head.reader is not None
        for start in range(0, len(places), batch_size):
            own = places[start : start + batch_size]
            batch = trunk.batch(own, [0] * len(own))
            held = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            levels = model.features(held).levels
            pooled.append(model.pooled_levels(held, levels, model.head.reader.pools).cpu().numpy())
        truth = films.is_abnormal[places, None].astype(np.float32)
        return Seen(np.concatenate(pooled), np.zeros((len(places), 1)), truth)

    @torch.inference_mode()
    def logits(self, model: nn.Module) -> Floats:
        """(N,) of the `choose` films, by what is trained here."""
        trunk, device = self.trunk["choose"], next(model.parameters()).device
        scores = []
        for start in range(0, len(trunk.hidden), 64):
            places = range(start, min(start + 64, len(trunk.hidden)))
            hidden = trunk.state(places, [0] * len(places)).to(device)
            scores.append(model({"hidden": hidden, "grid": trunk.grid})[1].double().cpu().numpy())
        return np.concatenate(scores)


# --- after training --------------------------------------------------------------------------------------------------


def read_levels(model: AdaptedDetector, trainee: AnomalyTrainee, penalties: Sequence[float]) -> None:
    """Fit the head's reading of the levels on real films, by patient, and choose how it joins what was trained.

    `choose` picks the penalty, and the share of SHARES that ranks it best.
    """
    head, films = model.head, trainee.films
    assert head.reader is not None
    seen = {role: trainee.seen(model, role) for role in ("train", "choose")}
    is_real = films["train"].kind != SYNTHETIC
    chances = patient_chances(
        [one for one, real in zip(films["train"].patients, is_real, strict=True) if real], trainee.balance
    )

    def rank(logits: Floats, truth: Truth) -> float:
        return float(auroc(logits[:, 0], truth[:, 0] > 0.5)[0])

    fit = fit_levels(seen["train"], seen["choose"], chances, penalties, (), rank)
    head.reader.start(*(torch.from_numpy(part) for part in (fit.mean, fit.spread, fit.weight, fit.bias)))
    read, own, truth = fit.logits(seen["choose"])[:, 0], trainee.logits(model), seen["choose"].truth
    own = own[films["choose"].kind != SYNTHETIC]
    values = [rank((read + share * own)[:, None], truth) for share in SHARES]
    head.share.fill_(SHARES[int(np.argmax(values))])


@torch.inference_mode()
def described_patches(
    model: AdaptedDetector, films: npt.NDArray[np.uint8], contract: InputContract, batch_size: int = 16
) -> Iterator[Tensor]:
    """Of each film (S, S, C) its patches (P, D) as memory describes them."""
    for start in range(0, len(films), batch_size):
        pixels = to_pixels(np.asarray(films[start : start + batch_size]), contract).to(model.head.memory.device)
        yield from model.head.describe(model.features({"pixels": pixels})).flatten(1, 2).cpu()


def sampled(films: Iterable[Tensor], count: int, seed: int) -> Tensor:
    """Some patches of each of `count` films, together about SAMPLED_PATCHES."""
    per_film, generator = max(1, SAMPLED_PATCHES // count), torch.Generator().manual_seed(seed)
    return torch.cat([patches[torch.randperm(len(patches), generator=generator)[:per_film]] for patches in films])


@torch.no_grad()
def remember(head: AnomalyHead, patches: Tensor, seed: int) -> None:
    """Fill memory and components from patches (P, D) of normal films: a greedy coreset, and their main directions."""
    places, width = len(head.memory), head.shape.memory_width
    chosen = greedy_coreset(patches, places, seed).half().float()
    head.memory.copy_(chosen[torch.arange(places) % len(chosen)])  # fewer patches than places: some stand twice
    shown = patches[:, :width]
    _, _, directions = torch.linalg.svd(shown - shown.mean(dim=0), full_matrices=False)
    head.centre.copy_(shown.mean(dim=0))
    head.components.zero_()
    kept = directions[: head.shape.components].T
    head.components[:, : kept.shape[1]] = kept


@torch.inference_mode()
def learn_usual(model: AdaptedDetector, films: npt.NDArray[np.uint8], contract: InputContract, batch_size: int = 16) -> None:
    """What each branch's map shows at each place of normal films (N, S, S, C): mean and spread, smoothed over neighbours.

    NOTE: these films must not be among the reference, whose scores would depend on all of them unlike a new film's.
    """
    head, maps = model.head, []
    for start in range(0, len(films), batch_size):
        pixels = to_pixels(np.asarray(films[start : start + batch_size]), contract).to(head.memory.device)
        maps.append(head.raw(*model.looked_at(pixels))[0])
    every = torch.cat(maps)
    mean, spread = every.mean(dim=0), every.std(dim=0, correction=0)
    overall = every.std(dim=(0, 2, 3), correction=0)[:, None, None]
    few = FEW / (FEW + len(every))  # of a handful of films the spread at one place says little
    spread = (1 - few) * F.avg_pool2d(spread, 3, 1, 1, count_include_pad=False) + few * overall
    head.usual.copy_(F.interpolate(mean[None], head.shape.places, mode="area")[0])
    head.log_spread.copy_(F.interpolate(spread[None], head.shape.places, mode="area")[0].clamp_min(1e-4).log())


@torch.inference_mode()
def score_all(
    model: AdaptedDetector, films: npt.NDArray[np.uint8], contract: InputContract, batch_size: int = 16
) -> tuple[Floats, npt.NDArray[np.float32]]:
    """Scores (N, 4) and maps (N, 4, h, w) of every branch through the whole tower, as serving computes them."""
    model.eval()
    scores, maps = [], []
    for start in range(0, len(films), batch_size):
        pixels = to_pixels(np.asarray(films[start : start + batch_size]), contract).to(model.head.memory.device)
        output = model.every_branch(pixels)
        scores.append(output.films.double().cpu().numpy())
        maps.append(output.maps.float().cpu().numpy())
    return np.concatenate(scores), np.concatenate(maps)


def choose_weights(scores: Floats, is_abnormal: npt.NDArray[np.bool_], patients: Sequence[str]) -> Floats:
    """The branches' weights in the fusion: of those that rank the `choose` films best, the most even ones.

    As good as the best is what lies within one standard error of it, over resamples of patients (Breiman's rule): a few
    films are too few to choose finely by. A branch that alone is clearly behind the best one (WORSE standard errors: the
    best one's epoch, penalty and share were picked on these films, which flatters it), or hardly better than chance, gets
    none.
    """
    draws = PatientBootstrap(patients, WEIGHT_RESAMPLES)

    def ranks(values: Floats) -> Statistic:
        return lambda weights: auroc(values, is_abnormal, weights)

    def is_as_good(values: Floats, best: Floats, errors: float = 1.0) -> bool:
        gap = difference(ranks(best), ranks(values))
        return float(gap(np.ones((1, len(values))))[0]) <= errors * float(np.nanstd(draws.samples(gap)))

    alone = np.array([auroc(column, is_abnormal)[0] for column in scores.T])
    leader = scores[:, int(alone.argmax())]
    useful = (alone >= min(USEFUL, float(alone.max()))) & np.array([is_as_good(column, leader, WORSE) for column in scores.T])
    tried = [np.array(one) * useful for one in product(WEIGHT_STEPS, repeat=scores.shape[1])]
    tried = [one for one in tried if one.max() == WEIGHT_STEPS[-1]]
    tried = sorted(tried, key=lambda one: (-float(one[useful].min()), -float(one.sum())))
    fused = [NormalReference(scores[~is_abnormal], weights).surprise(scores) for weights in tried]
    best = fused[int(np.argmax([auroc(values, is_abnormal)[0] for values in fused]))]
    return next(weights for weights, values in zip(tried, fused, strict=True) if is_as_good(values, best))


def patch_quantiles(maps: npt.NDArray[np.float32], weights: Floats) -> Floats:
    """(N, 4, h, w) of normal films -> (5, QUANTILES): of each branch, and of their weighted ranks together."""
    levels = np.linspace(0.0, 1.0, QUANTILES)
    tables = [np.quantile(maps[:, b].astype(np.float64), levels) for b in range(maps.shape[1])]
    return np.stack([*tables, np.quantile(mean_rank(maps, tables, weights), levels)])


def with_lesions(
    normals: npt.NDArray[np.uint8],
    count: int,
    contract: InputContract,
    strength: AugmentStrength | None,
    seed: int,
    lesions: int = 200,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """`count` synthetic films (count, S, S, C) and their masks, every second one of an augmented normal film."""
    random = np.random.default_rng((seed, count))
    pool = [draw_lesion(seed * 10_000 + number, contract.size) for number in range(min(lesions, count))]
    films = np.empty((count, *normals.shape[1:]), np.uint8)
    masks = np.empty((count, *normals.shape[1:3]), bool)
    for place in range(count):
        film = np.asarray(normals[random.integers(len(normals))])
        if strength is not None and place % 2:
            film = _augmented(film, contract, strength, int(random.integers(2**31)))
        for _ in range(8):  # a lesion may fall where the film is already white or black: then another one is laid over it
            films[place], masks[place] = lay_over(film, pool[random.integers(len(pool))], random)
            if masks[place].mean() > 0.002:
                break
    return films, masks


def _augmented(
    film: npt.NDArray[np.uint8], contract: InputContract, strength: AugmentStrength, seed: int
) -> npt.NDArray[np.uint8]:
    pixels = augmented_pixels(film[None], contract, strength, seed)[0, : film.shape[2]]
    mean, std = (torch.tensor(value[: film.shape[2]]).view(-1, 1, 1) for value in (contract.mean, contract.std))
    shown = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return np.asarray(shown.movedim(0, -1).numpy())


def _groups(kind: npt.NDArray[np.int64], synthetic_share: float) -> dict[int, float]:
    """How likely a film of each kind is drawn: half are normal; of the others `synthetic_share` are synthetic."""
    has = {one: bool((kind == one).any()) for one in (SYNTHETIC, ABNORMAL)}
    share = synthetic_share if has[ABNORMAL] and has[SYNTHETIC] else float(has[SYNTHETIC])
    shares = {NORMAL: 0.5, SYNTHETIC: 0.5 * share, ABNORMAL: 0.5 * (1 - share)}
    return {one: value for one, value in shares.items() if value > 0}


def _chances(films: SortedFilms, kind: int, balance: float) -> tuple[npt.NDArray[np.int64], Floats]:
    places = np.flatnonzero(films.kind == kind)
    return places, patient_chances([films.patients[place] for place in places], balance)
