"""Fitting of the fusion head on features that do not change: axes, experts by ridge regression, joint networks.

Each member is fitted on all patients but one part (cross-fitting), so that every case has logits of a network that never
saw its patient: rules, calibration and the report's cross-validated figures rest on those. With `folds` = 1 the one member
is fitted on `train` and held to `val`.

Dropping of modalities: each case of each step draws its own rate from 0 to `max_missing`, and loses each modality, and
each value of a table, with that chance; one modality always stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from adapters.tasks.account import Subset, subsets_of
from adapters.tasks.fusion_head import NOTE, FusionHead, FusionInputs, HeadShape
from adapters.tasks.tabular import MISSING
from foundation.errors import InvalidRequest, ManifestError
from training.finetuning.fusion.data import Case, FieldStatistics
from training.finetuning.fusion.rules import Hurdle

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]
LEVEL_WEIGHT = 2.0  # of the level at 3/4 in a film's descriptor, beside embedding and tokens
FEWEST = 3  # cases with and without the outcome that an expert needs
SMALLEST_SPREAD = 1e-4
FULL_SOLUTION = 1_000_000  # cells up to which components are found exactly


@dataclass(frozen=True)
class FusionHeadRecipe:
    """film, patch, note: principal components kept; width: of a token of the joint network.

    folds: parts of the patients of train and val for cross-fitting, 1 for none. ridge: inverse strength of the experts'
    penalty (scikit-learn's C). steps, rate, decay, dropout: of the joint networks, full batches with AdamW. max_missing:
    see above. margin, support: what several modalities must show before they answer together (`fusion_rules.Hurdle`).
    """

    film: int = 32
    patch: int = 16
    note: int = 16
    width: int = 16
    folds: int = 5
    ridge: float = 0.05
    steps: int = 150
    rate: float = 3e-3
    decay: float = 0.1
    dropout: float = 0.3
    max_missing: float = 0.9
    margin: float = 0.005
    support: float = 0.8
    coverage: float = 0.9

    def __post_init__(self) -> None:
        if self.folds < 1 or min(self.film, self.patch, self.note, self.width, self.steps) < 1 or self.width % 2:
            raise InvalidRequest("head: folds, film, patch, note and steps must be at least 1, width even.", param="head")
        if not 0.0 <= self.support <= 1.0:
            raise InvalidRequest("head.support must lie from 0 to 1.", param="support")
        if not 0.0 <= self.max_missing <= 0.9 or not 0.5 <= self.coverage < 1.0:
            raise InvalidRequest("head: max_missing must be 0 to 0.9, coverage 0.5 to below 1.", param="head")

    @property
    def hurdle(self) -> Hurdle:
        return Hurdle(self.margin, self.support)


@dataclass(frozen=True, eq=False)
class FilmFeatures:
    """What the tower says of films: described (N, D) by `fusion_head.describe`, tokens (N, T, D_t)."""

    described: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Part:
    """One member's patients: places of the cases it learns from, and of those held back from it."""

    learn: Places
    held: Places


@dataclass(frozen=True, eq=False)
class Learning:
    """All cases that may be learnt from (or held back), ready for the head. weights (N,), mean one."""

    inputs: FusionInputs
    truth: npt.NDArray[np.bool_]
    weights: Floats
    parts: tuple[Part, ...]
    patients: tuple[str, ...]


def split_parts(cases: Sequence[Case], folds: int, seed: int) -> tuple[Part, ...]:
    """Parts by patient with the outcome spread over them; with one fold `train` learns and `val` is held back."""
    truth = np.array([case.truth for case in cases])
    if folds == 1:
        is_val = np.array([case.split == "val" for case in cases])
        parts: tuple[Part, ...] = (Part(np.flatnonzero(~is_val), np.flatnonzero(is_val)),)
    else:
        patients = [case.patient for case in cases]
        fewest = min(len({p for p, told in zip(patients, truth, strict=True) if told == kind}) for kind in (True, False))
        if fewest < folds:
            raise ManifestError(
                f"{fewest} patients have or lack the outcome, fewer than head.folds = {folds}; lower it or add patients."
            )
        cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = tuple(Part(learn, held) for learn, held in cut.split(np.zeros(len(cases)), truth, patients))
    for part in parts:
        if len(set(truth[part.learn])) < 2 or len(set(truth[part.held])) < 2:
            raise ManifestError("A part of the patients has only one outcome; use fewer folds or more patients.")
    return parts


def new_head(
    recipe: FusionHeadRecipe,
    template: FusionHead,
    films: FilmFeatures,
    notes: npt.NDArray[np.float32],
    statistics: FieldStatistics,
) -> FusionHead:
    """A head with its statistics, still without experts. template: a head of the wanted modalities, fields and sizes."""
    shape = template.shape
    described = shape.embed_dim, shape.token_width, shape.level_width
    tokens = films.tokens.reshape(-1, shape.token_width)
    for name, rows, blocks, count in (
        ("film", films.described, described, shape.film),
        ("patch", tokens, (shape.token_width,), shape.patch),
        ("note", notes, (shape.embed_dim,), shape.note),
    ):
        if name == "note" and NOTE not in template.modalities:
            continue
        mean, axes = principal_axes(rows.astype(np.float64), blocks, count)
        getattr(template, f"{name}_mean").copy_(torch.from_numpy(mean))
        getattr(template, f"{name}_axes").copy_(torch.from_numpy(axes))
    template.centre.copy_(torch.from_numpy(statistics.centre))
    template.spread.copy_(torch.from_numpy(statistics.spread))
    template.knots.copy_(torch.from_numpy(statistics.knots))
    return template


def sizes(
    recipe: FusionHeadRecipe, films: FilmFeatures, embed_dim: int, level_width: int, notes: int, learning: int
) -> HeadShape:
    """Sizes for this backbone; never more components than rows carry."""
    token_width = films.tokens.shape[-1]
    few = max(1, min(learning // 2, films.described.shape[1]))
    return HeadShape(
        embed_dim=embed_dim,
        token_width=token_width,
        level_width=level_width,
        film=min(recipe.film, few),
        patch=min(recipe.patch, token_width, few),
        note=max(1, min(recipe.note, embed_dim, notes // 2)),
        width=recipe.width,
        members=recipe.folds,
    )


def principal_axes(rows: Floats, blocks: Sequence[int], count: int) -> tuple[Floats, Floats]:
    """mean (D,) and whitening axes (D, count), each block weighing alike (three blocks: the last LEVEL_WEIGHT times)."""
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    share = [LEVEL_WEIGHT if place == 2 else 1.0 for place in range(len(blocks))]
    scale = np.concatenate([np.full(width, weight / np.sqrt(width)) for width, weight in zip(blocks, share, strict=True)])
    scale = scale / np.maximum(spread, SMALLEST_SPREAD)
    solver = "full" if rows.size <= FULL_SOLUTION else "randomized"
    pca = PCA(count, svd_solver=solver, random_state=0).fit((rows - mean) * scale)
    strength = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
    return mean, scale[:, None] * pca.components_.T / strength


def fit(head: FusionHead, learning: Learning, recipe: FusionHeadRecipe, seed: int) -> None:
    """Fit every member on its part, in place."""
    for member, part in enumerate(learning.parts):
        own = learning.inputs.take(torch.from_numpy(part.learn))
        truth, weights = learning.truth[part.learn], learning.weights[part.learn]
        rate = float(np.average(truth, weights=weights))
        with torch.no_grad():
            head.prior[member] = np.log(rate / (1 - rate))
            for place, name in enumerate(head.modalities):
                features = head.expert_features(name, own).double().numpy()
                kept = own.present[:, place].numpy()
                fitted = _ridge(features[kept], truth[kept], weights[kept], recipe.ridge, float(head.prior[member]))
                head.experts[place][member] = torch.from_numpy(fitted)
        _fit_joint(head, member, own, truth, weights, recipe, seed * 1000 + member)
    head.eval()


def _ridge(x: Floats, truth: npt.NDArray[np.bool_], weights: Floats, ridge: float, prior: float) -> Floats:
    """Coefficients and intercept; the prior alone where there is too little to learn from."""
    if min(truth.sum(), (~truth).sum()) < FEWEST:
        return np.concatenate([np.zeros(x.shape[1]), [prior]])
    fitted = LogisticRegression(C=ridge, max_iter=2000).fit(x, truth, weights)
    return np.concatenate([fitted.coef_[0], fitted.intercept_])


def _fit_joint(
    head: FusionHead,
    member: int,
    inputs: FusionInputs,
    truth: npt.NDArray[np.bool_],
    weights: Floats,
    recipe: FusionHeadRecipe,
    seed: int,
) -> None:
    network, random = head.joint[member], torch.Generator().manual_seed(seed)
    target, weight = torch.from_numpy(truth).float(), torch.from_numpy(weights).float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the network's own dropout
        for _ in range(recipe.steps):
            seen = drop(inputs, recipe.max_missing, random)
            loss = (F.binary_cross_entropy_with_logits(network(seen), target, reduction="none") * weight).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    network.eval()


def drop(inputs: FusionInputs, most: float, random: torch.Generator) -> FusionInputs:
    """Each case loses each modality, and each of its table's values, at a rate of its own from 0 to `most`."""
    rate = most * torch.rand(len(inputs), 1, generator=random)
    seen = without(inputs, rate, random)
    is_lost = torch.rand(inputs.states.shape, generator=random) < rate
    return replace(seen, states=torch.where(is_lost, MISSING, seen.states))


def without(inputs: FusionInputs, rate: float | Tensor, random: torch.Generator) -> FusionInputs:
    """Each modality is taken away with chance `rate` (a number, or (B, 1)); of each case one that was there stays."""
    chance = torch.rand(inputs.present.shape, generator=random)
    stays = inputs.present & (chance >= rate)
    luckiest = torch.where(inputs.present, chance, -1.0).argmax(dim=1)
    rescued = F.one_hot(luckiest, inputs.present.shape[1]).bool() & inputs.present
    return inputs.with_present(torch.where(stays.any(dim=1, keepdim=True), stays, rescued))


@torch.no_grad()
def candidates(head: FusionHead, inputs: FusionInputs, parts: Sequence[Part] | None = None) -> Mapping[Subset, Floats]:
    """For each subset (N, M + 2): the logits by each of `head.methods`, NaN where a case lacks a modality of the subset.

    parts: each case is answered by the member it was held back from, and is NaN where there is none; without, by all.
    """
    made: dict[Subset, Floats] = {}
    for subset in subsets_of(head.modalities):
        mask = torch.tensor([name in subset for name in head.modalities])
        has_all = inputs.present[:, mask].all(dim=1)
        values = own_logits(head, inputs.with_present(mask.expand(len(inputs), -1)), parts)
        values[:, [place for place, is_in in enumerate(mask.tolist()) if not is_in]] = np.nan
        made[subset] = np.where(has_all.numpy()[:, None], values, np.nan)
    return made


@torch.no_grad()
def own_logits(head: FusionHead, inputs: FusionInputs, parts: Sequence[Part] | None = None) -> Floats:
    """(N, M + 2) by each of `head.methods`, from all that each case has."""
    each = head(inputs).double().numpy()  # (K, N, M + 2)
    if parts is None:
        return np.asarray(each.mean(axis=0))
    values = np.full(each.shape[1:], np.nan)
    for member, part in enumerate(parts):
        values[part.held] = each[member, part.held]
    return values
