"""The linear reading of a tower's levels, fitted in closed form: L2 logistic regression.

    logits (N, K) = slope_k * start (N, K)  +  standardised features (N, F) @ weight.T  +  bias

`start` is what the head says already (zero-shot), so that words and features are blended in one fit. Its slope is penalised
as the weight of one more standardised feature: where the tower has learnt these very films, the words tell them too well, and
a free slope would trust them. Labels that are to be blind to how films were kept are fitted on features without that, and
their weights folded back (`erasure.py`). The penalty is the one of `penalties` that ranks the validation films best. Convex:
no seed, no epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from training.erasure import Erasure, Floats, fit_erasure

Truth = npt.NDArray[np.float32]
STEPS = 300


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of N films before training: features (N, F), start (N, K), truth (N, K) with NaN for unknown."""

    features: npt.NDArray[np.float32]
    start: Floats
    truth: Truth


@dataclass(frozen=True, eq=False)
class Blind:
    """columns: labels, of no exclusive group, whose logits may not go with the films' strata (N, G), NaN where unknown."""

    columns: Sequence[int]
    strata: Floats


@dataclass(frozen=True, eq=False)
class LevelFit:
    """mean, spread (F,); weight (K, F) on standardised features; bias and slope (K,); and what it was chosen by."""

    mean: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    slope: npt.NDArray[np.float32]
    penalty: float
    score: float

    def logits(self, seen: Seen) -> Floats:
        x = (seen.features - self.mean) / self.spread
        return np.asarray(self.slope * seen.start + x @ self.weight.T + self.bias, dtype=np.float64)


def fit_levels(
    train: Seen,
    val: Seen,
    weights: Floats,
    penalties: Sequence[float],
    exclusive: Sequence[Sequence[int]],
    score: Callable[[Floats, Truth], float],
    blind: Blind | None = None,
) -> LevelFit:
    """weights (N,): how much each training film counts. exclusive: columns of which exactly one holds.

    score: larger is better, on the validation films.
    """
    mean = train.features.mean(axis=0)
    spread = np.maximum(train.features.std(axis=0), 1e-6)
    x = ((train.features - mean) / spread).astype(np.float32)
    truth, known = np.nan_to_num(train.truth), ~np.isnan(train.truth)
    counts = (weights / weights.mean())[:, None] * known
    counts = counts / np.maximum(counts.sum(axis=0), 1e-9)
    hidden = [] if blind is None else list(blind.columns)
    seeing = [column for column in range(truth.shape[1]) if column not in hidden]
    groups = [[seeing.index(column) for column in columns] for columns in exclusive]
    parts = [_Part(x, train.start[:, seeing], truth, counts, seeing, groups)] if seeing else []
    if blind is not None and hidden:
        erasure = fit_erasure(x, train.start[:, hidden], blind.strata)
        parts.append(_Part(erasure.of(x), erasure.of_start(train.start[:, hidden], x), truth, counts, hidden, [], erasure))
    best: LevelFit | None = None
    for penalty in sorted(penalties, reverse=True):  # the strongest first: each fit starts from the one before
        weight, bias, slope = np.zeros((truth.shape[1], x.shape[1])), np.zeros(truth.shape[1]), np.zeros(truth.shape[1])
        for part in parts:
            weight[part.columns], bias[part.columns], slope[part.columns] = part.fit(penalty)
        weights32, bias32, slope32 = weight.astype(np.float32), bias.astype(np.float32), slope.astype(np.float32)
        fit = LevelFit(mean, spread, weights32, bias32, slope32, penalty, 0.0)
        fit = replace(fit, score=score(fit.logits(val), val.truth))
        if best is None or fit.score > best.score:
            best = fit
    assert best is not None
    return best


class _Part:
    """Labels that are fitted on the same features: `columns` of truth and counts (N, K). start (N, k), exclusive: of these.

    erasure: what took the strata out of x and start.
    """

    def __init__(
        self,
        x: npt.NDArray[np.float32],
        start: Floats,
        truth: Truth,
        counts: Floats,
        columns: list[int],
        exclusive: Sequence[Sequence[int]],
        erasure: Erasure | None = None,
    ) -> None:
        self.columns = columns
        self._x, self._start = x, start
        self._truth, self._counts = truth[:, columns], counts[:, columns]
        self._exclusive, self._erasure = exclusive, erasure
        self._place = _first_place(x.shape[1], self._truth, self._counts)

    def fit(self, penalty: float) -> tuple[Floats, Floats, Floats]:
        """Weights (k, F) on features as they are, biases and slopes (k,); begins where the last fit ended."""
        self._place = _minimise(self._x, self._start, self._truth, self._counts, penalty, self._exclusive, self._place)
        weight, bias, slope = _unpack(self._place, self._x.shape[1], len(self.columns))
        return (weight if self._erasure is None else self._erasure.folded(weight, slope)), bias, slope


def _first_place(features: int, truth: Truth, counts: Floats) -> Floats:
    """No weights, the base rates, and the start taken at a tenth: zero-shot logits are often far too sure."""
    rate = np.clip((counts * truth).sum(axis=0), 1e-4, 1 - 1e-4)
    labels = truth.shape[1]
    return np.concatenate([np.zeros(features * labels), np.log(rate / (1 - rate)), np.full(labels, 0.1)])


def _unpack(place: Floats, features: int, labels: int) -> tuple[Floats, Floats, Floats]:
    end = features * labels
    return place[:end].reshape(labels, features), place[end : end + labels], place[end + labels :]


def _minimise(
    x: npt.NDArray[np.float32],
    start: Floats,
    truth: Truth,
    counts: Floats,
    penalty: float,
    exclusive: Sequence[Sequence[int]],
    place: Floats,
) -> Floats:
    features, labels = x.shape[1], truth.shape[1]
    width = start.std(axis=0)

    def loss(at: Floats) -> tuple[float, Floats]:
        weight, bias, slope = _unpack(at, features, labels)
        logits = slope * start + x @ weight.T.astype(np.float32) + bias
        value, error = _cross_entropy(logits, truth, counts, exclusive)
        total = value + 0.5 * penalty * (float((weight**2).sum()) + float(((slope * width) ** 2).sum()))
        down = (error.T.astype(np.float32) @ x).astype(np.float64) + penalty * weight
        told = (error * start).sum(axis=0) + penalty * slope * width**2
        return total, np.concatenate([down.ravel(), error.sum(axis=0), told])

    return np.asarray(minimize(loss, place, jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "maxcor": 20}).x)


def _cross_entropy(logits: Floats, truth: Truth, counts: Floats, exclusive: Sequence[Sequence[int]]) -> tuple[float, Floats]:
    """Sum over labels, a group of classes counting once; and its derivative by the logits."""
    parts = counts * (np.logaddexp(0.0, logits) - truth * logits)
    error = counts * (0.5 * (1 + np.tanh(0.5 * logits)) - truth)
    for columns in map(list, exclusive):
        shifted = logits[:, columns] - logits[:, columns].max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        parts[:, columns] = -counts[:, columns] * truth[:, columns] * log_p
        error[:, columns] = counts[:, columns] * (np.exp(log_p) - truth[:, columns])
    return float(parts.sum()), error
