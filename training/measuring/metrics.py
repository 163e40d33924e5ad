"""Figures of merit with patient-level intervals. Numpy only; knows nothing of models, films or files.

A bootstrap resample is a weight for each row: how often its patient was drawn. Every statistic therefore takes
`weights` (R, N) and returns (R,) in one pass over sorted scores, so that 1,000 resamples of 1,000 rows and 14 labels
take seconds. One resample serves all labels and all models: differences between models are paired.

    draws = PatientBootstrap(patients, resamples=1000, seed=0)
    draws.estimate(lambda weights: auroc(scores, truth, weights))      -> Estimate(value, low, high)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""weights (R, N) -> (R,); NaN where a resample does not define it."""

LEVEL = 0.95
_CHUNK_CELLS = 4_000_000  # weights held at once: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A number and its percentile interval; NaN bounds where too few resamples define it."""

    value: float
    low: float = float("nan")
    high: float = float("nan")
    level: float = LEVEL

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "n/a"
        return f"{self.value:.3f}" if np.isnan(self.low) else f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class PatientBootstrap:
    """Draws patients with replacement, all rows of a patient together. The same seed gives the same draws."""

    def __init__(self, patients: Sequence[str], resamples: int = 1000, seed: int = 0) -> None:
        names, self._patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        self.patients = len(names)
        self.rows = len(self._patient_of)
        self.resamples = resamples
        self.seed = seed

    @cached_property
    def _draws(self) -> npt.NDArray[np.uint8]:
        """(R, patients): how often each patient was drawn."""
        random = np.random.default_rng(self.seed)
        shares = np.full(self.patients, 1.0 / self.patients)
        return random.multinomial(self.patients, shares, size=self.resamples).astype(np.uint8)

    def samples(self, statistic: Statistic) -> Floats:
        """(R,) the statistic on every resample."""
        step = max(1, _CHUNK_CELLS // max(1, self.rows))
        chunks = [self._draws[start : start + step] for start in range(0, self.resamples, step)]
        parts = [statistic(chunk[:, self._patient_of].astype(np.float64)) for chunk in chunks]
        return np.concatenate(parts) if parts else np.empty(0)

    def estimate(self, statistic: Statistic, level: float = LEVEL) -> Estimate:
        value = float(statistic(np.ones((1, self.rows)))[0])
        return interval(value, self.samples(statistic), level)


def interval(value: float, samples: Floats, level: float = LEVEL) -> Estimate:
    """Percentile interval; without bounds where less than half of the resamples are defined."""
    defined = samples[~np.isnan(samples)]
    if np.isnan(value) or len(defined) * 2 < len(samples) or not len(defined):
        return Estimate(value, level=level)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), level)


def mean_over(statistics: Sequence[Statistic]) -> Statistic:
    """The mean of several statistics on the same resample, over those that it defines."""

    def mean(weights: Floats) -> Floats:
        values = np.stack([statistic(weights) for statistic in statistics])  # (K, R)
        known = ~np.isnan(values)
        return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))

    return mean


def difference(first: Statistic, second: Statistic) -> Statistic:
    """first - second on the same resample: a paired comparison."""
    return lambda weights: first(weights) - second(weights)


# --- ranking ---------------------------------------------------------------------------------------------------------


def auroc(scores: npt.ArrayLike, truth: npt.ArrayLike, weights: Floats | None = None) -> Floats:
    """Area under the ROC curve, ties counting half: (R,), one value without weights. NaN with a single class."""
    order, is_positive, first, last = _sorted(scores, truth)
    weight = _rows(weights, len(order))[:, order]
    below = np.cumsum(weight * ~is_positive, axis=1)
    below = np.concatenate([np.zeros((len(weight), 1)), below], axis=1)  # below[i]: negatives before place i
    positive = np.flatnonzero(is_positive)
    beaten = 0.5 * (below[:, first[positive]] + below[:, last[positive] + 1])
    won = (weight[:, positive] * beaten).sum(axis=1)
    return _ratio(won, weight[:, positive].sum(axis=1) * below[:, -1])


def average_precision(scores: npt.ArrayLike, truth: npt.ArrayLike, weights: Floats | None = None) -> Floats:
    """Precision at each positive, averaged (no interpolation; tied scores share one threshold): (R,)."""
    order, is_positive, first, _ = _sorted(scores, truth)
    weight = _rows(weights, len(order))[:, order]
    positive = np.flatnonzero(is_positive)
    at_least = _from_the_top(weight)[:, first[positive]]  # weight of all rows that score at least as high
    hits = _from_the_top(weight * is_positive)[:, first[positive]]
    precision = np.divide(hits, at_least, out=np.zeros_like(hits), where=at_least > 0)
    return _ratio((weight[:, positive] * precision).sum(axis=1), weight[:, positive].sum(axis=1))


def _sorted(
    scores: npt.ArrayLike, truth: npt.ArrayLike
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Ascending order, truth in that order, and for each place the first and last place that hold the same score."""
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a score is not a finite number")
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf) > 0)
    lengths = np.diff(starts, append=len(order))
    return (
        order,
        np.asarray(truth, dtype=bool)[order],
        np.repeat(starts, lengths),
        np.repeat(starts + lengths - 1, lengths),
    )


def _from_the_top(weight: Floats) -> Floats:
    return np.asarray(np.cumsum(weight[:, ::-1], axis=1)[:, ::-1])


# --- calibration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """For each bin that holds a film: mean predicted probability, observed frequency, number of films."""

    predicted: Floats
    observed: Floats
    films: npt.NDArray[np.int64]


def reliability(probabilities: npt.ArrayLike, truth: npt.ArrayLike, bins: int = 10) -> ReliabilityCurve:
    """Equal-width bins over 0..1, the last one closed."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    place = _bin(p, bins)
    films = np.bincount(place, minlength=bins)
    held = films > 0
    predicted = np.bincount(place, weights=p, minlength=bins)[held] / films[held]
    observed = np.bincount(place, weights=y, minlength=bins)[held] / films[held]
    return ReliabilityCurve(predicted, observed, films[held])


def calibration_error(
    probabilities: npt.ArrayLike, truth: npt.ArrayLike, weights: Floats | None = None, bins: int = 10
) -> Floats:
    """Expected calibration error: |mean probability - frequency| over equal-width bins, weighted by films: (R,)."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    member = np.eye(bins)[_bin(p, bins)]  # (N, bins)
    weight = _rows(weights, len(p))
    gap = np.abs((weight * (p - y)) @ member).sum(axis=1)
    return _ratio(gap, weight.sum(axis=1))


def brier(probabilities: npt.ArrayLike, truth: npt.ArrayLike, weights: Floats | None = None) -> Floats:
    """Mean squared distance between probability and truth: (R,)."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    return weighted_mean((p - y) ** 2, weights)


def _bin(probabilities: Floats, bins: int) -> npt.NDArray[np.int64]:
    if ((probabilities < 0) | (probabilities > 1)).any():
        raise ValueError("a probability lies outside 0..1")
    return np.minimum((probabilities * bins).astype(np.int64), bins - 1)


# --- decisions -------------------------------------------------------------------------------------------------------


def weighted_mean(values: npt.ArrayLike, weights: Floats | None = None) -> Floats:
    """(R,) mean of one value a row; of booleans it is an accuracy. NaN values are left out."""
    value = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(value)
    weight = _rows(weights, len(value))[:, known]
    return _ratio((weight * value[known]).sum(axis=1), weight.sum(axis=1))


accuracy = weighted_mean


def sensitivity(decisions: npt.ArrayLike, truth: npt.ArrayLike, weights: Floats | None = None) -> Floats:
    """Share of the positives that were called: (R,)."""
    truth = np.asarray(truth, dtype=bool)
    return weighted_mean(np.where(truth, np.asarray(decisions, dtype=np.float64), np.nan), weights)


def specificity(decisions: npt.ArrayLike, truth: npt.ArrayLike, weights: Floats | None = None) -> Floats:
    """Share of the negatives that were not called: (R,)."""
    truth = np.asarray(truth, dtype=bool)
    return weighted_mean(np.where(truth, np.nan, 1.0 - np.asarray(decisions, dtype=np.float64)), weights)


# --- retrieval -------------------------------------------------------------------------------------------------------


def text_ranks(similarity: Floats, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each image the rank (1 is best) of its own text among the distinct texts; equal text is one target.

    similarity: (N images, T distinct texts) in the order of `distinct(texts)`. A tie ranks as if lost, so that a
    model that says the same of everything finds nothing.
    """
    own = _places(texts)
    score = similarity[np.arange(len(own)), own][:, None]
    return np.asarray((similarity >= score).sum(axis=1))


def image_ranks(similarity: Floats, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each distinct text the rank of the best of its images; images of the same text do not compete."""
    own = _places(texts)
    ranks = []
    for place, column in enumerate(similarity.T):
        is_own = own == place
        ranks.append(1 + int((column[~is_own] >= column[is_own].max()).sum()))
    return np.array(ranks)


def distinct(texts: Sequence[str]) -> list[str]:
    """The distinct texts, in order of first appearance."""
    return list(dict.fromkeys(texts))


def _places(texts: Sequence[str]) -> npt.NDArray[np.intp]:
    place = {text: index for index, text in enumerate(distinct(texts))}
    return np.array([place[text] for text in texts], dtype=np.intp)


def _rows(weights: Floats | None, count: int) -> Floats:
    return np.ones((1, count)) if weights is None else weights


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Floats:
    """Division that gives NaN where the denominator is zero, without a warning."""
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
