"""Conformal thresholds, fitted on the validation split by patients, and what they are worth on another split.

For each label and each truth, the threshold is the quantile that leaves `coverage` of the patients in, with the correction
for a finite number of them (split conformal, Vovk 2005; class by class, "Mondrian"). A patient's films share his weight of
one, so that one with many films counts no more than another. Where a class has too few patients for the coverage, its
threshold lets everything in: nothing is ruled out that the data cannot rule out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adapters.card import Conformal
from adapters.conformal import conformal_sets
from training.metrics import Floats, Statistic, weighted_mean

COVERAGE = 0.9
Words = npt.NDArray[np.str_]


def fit_conformal(
    probabilities: Floats,
    truth: npt.NDArray[np.float32],
    patients: Sequence[str],
    split: str,
    *,
    is_multi_label: bool = True,
    coverage: float = COVERAGE,
) -> Conformal:
    """probabilities and truth (N, K), calibrated; truth is NaN where a label says nothing of a film."""
    weights = _shares(patients)
    columns = range(probabilities.shape[1])
    present = tuple(_lowest_kept(probabilities[:, k], truth[:, k] > 0.5, weights, coverage) for k in columns)
    if not is_multi_label:
        return Conformal(coverage, present, split)
    absent = tuple(-_lowest_kept(-probabilities[:, k], truth[:, k] < 0.5, weights, coverage, -1.0) for k in columns)
    return Conformal(coverage, present, split, absent)


def _lowest_kept(scores: Floats, chosen: npt.NDArray[np.bool_], weights: Floats, coverage: float, lowest: float = 0.0) -> float:
    """The largest threshold that keeps the corrected share of the chosen patients; `lowest` where none can."""
    order = np.argsort(-scores[chosen], kind="stable")
    held, count = np.cumsum(weights[chosen][order]), float(weights[chosen].sum())
    needed = (count + 1) * coverage
    if needed > count:
        return lowest
    return float(scores[chosen][order][int(np.searchsorted(held, needed - 1e-9))])


def _shares(patients: Sequence[str]) -> Floats:
    films_of = Counter(patients)
    return np.array([1.0 / films_of[patient] for patient in patients])


def set_words(conformal: Conformal, probabilities: Floats) -> Words:
    """(N, K) of "present", "absent" and "uncertain"."""
    sets = [conformal_sets(conformal, row) for row in probabilities]
    assert all(one is not None for one in sets)
    return np.array(sets)


def covered(words: Words, truth: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(N, K): 1 where the set holds the truth, 0 where not, NaN where the truth is unknown."""
    right = (words == "uncertain") | ((words == "present") == (truth > 0.5))
    return np.where(np.isnan(truth), np.nan, right.astype(np.float64))


def coverage_of(words: Words, truth: npt.NDArray[np.float32], k: int, held: bool, patients: Sequence[str]) -> Statistic:
    """Of patients that have (or have not) label k: the share whose set holds the truth."""
    right = covered(words, truth)[:, k]
    right[(truth[:, k] > 0.5) != held] = np.nan
    shares = _shares(patients)
    return lambda weights: weighted_mean(right, weights * shares)


def undecided(words: Words, k: int) -> Statistic:
    """The share of films whose set for label k does not decide."""
    return lambda weights: weighted_mean((words[:, k] == "uncertain").astype(np.float64), weights)
