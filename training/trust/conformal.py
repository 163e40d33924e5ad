"""Conformal thresholds, fitted on the validation split, and what they are worth on another split.

For each label and each truth, the threshold is the quantile that leaves `coverage` of the films in (split conformal, Vovk
2005; class by class, "Mondrian"). Sets are stated of films, so every film counts alike; but films of a patient are alike, so
the correction for a finite sample counts the patients who have such a film, not their films (Dunn, Wasserman, Ramdas 2022, on
samples in groups). Between two films the threshold is interpolated, for rounding up to the next of few would cover more than
is stated. Where a class has too few patients for the coverage (fewer than nine at 0.9), its threshold lets everything
in: nothing is ruled out that the data cannot rule out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adapters.card import Conformal
from adapters.conformal import conformal_sets
from training.measuring.metrics import Floats, Statistic, weighted_mean

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
    who, columns = np.asarray(patients), range(probabilities.shape[1])
    present = tuple(_lowest_kept(probabilities[:, k], truth[:, k] > 0.5, who, coverage) for k in columns)
    if not is_multi_label:
        return Conformal(coverage, present, split)
    absent = tuple(-_lowest_kept(-probabilities[:, k], truth[:, k] < 0.5, who, coverage, -1.0) for k in columns)
    return Conformal(coverage, present, split, absent)


def _lowest_kept(scores: Floats, chosen: npt.NDArray[np.bool_], patients: Words, coverage: float, lowest: float = 0.0) -> float:
    """The threshold that keeps the corrected share of the chosen films; `lowest` where none can."""
    count = len(set(patients[chosen]))
    needed = (1 + 1 / count) * coverage if count else np.inf
    if needed > 1:
        return lowest
    kept = np.arange(1, chosen.sum() + 1) / chosen.sum()
    return float(np.interp(needed, kept, np.sort(scores[chosen])[::-1]))


def least_patients(coverage: float) -> int:
    """How many patients a class needs before any film can be ruled out at this coverage."""
    return int(np.ceil(coverage / (1 - coverage) - 1e-9))


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


def coverage_of(words: Words, truth: npt.NDArray[np.float32], k: int, held: bool, patients: Sequence[str] = ()) -> Statistic:
    """Of films that have (or have not) label k: the share whose set holds the truth; of patients where these are given.

    Patients: such films of one share his weight of one.
    """
    right = covered(words, truth)[:, k]
    chosen = (truth[:, k] > 0.5) == held
    right[~chosen] = np.nan
    shares = np.zeros(len(right))
    shares[chosen] = _shares([patients[i] for i in np.flatnonzero(chosen).tolist()]) if patients else 1.0
    return lambda weights: weighted_mean(right, weights * shares)


def undecided(words: Words, k: int) -> Statistic:
    """The share of films whose set for label k does not decide."""
    return lambda weights: weighted_mean((words[:, k] == "uncertain").astype(np.float64), weights)
