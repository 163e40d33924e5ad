"""Conformal thresholds, fitted on the validation split, and what they are worth on another split.

Of new patients with a finding, one film each of those that show it: `coverage` keep "present" in their set; of patients
with films without it, one film each, "absent". Split conformal, class by class ("Mondrian", Vovk 2005), for films that come in
patients (repeated subsampling: Dunn, Wasserman, Ramdas 2022; the guarantee: Lee, Barber, Willett 2023):

    films of a patient are alike      one is drawn from each: the n drawn and a new patient's can be exchanged, so that keeping
                                      rank (n + 1) * coverage of n covers as stated. Threshold: the mean over many such draws
    between two films                 the threshold is interpolated, for rounding up would cover more where n is small; on the
                                      scale of the class's films as the calibrated probabilities expect them
    the rank is more than n           (fewer than nine patients at 0.9) interpolated likewise between the lowest film and none:
                                      as good as the calibration. With fewer than LEAST patients nothing is ruled out

Exact on average over splits. What one split gives varies by about sqrt(coverage * (1 - coverage) / n), see `resplit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adapters.card import Conformal
from adapters.conformal import may_be
from training.measuring.metrics import Floats, Statistic, weighted_mean

COVERAGE = 0.9
DRAWS = 200
LEAST = 3
"""Patients that a class needs before a film can be ruled out of it."""
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
    who, columns = np.asarray(patients, dtype=str), range(probabilities.shape[1])
    present = tuple(_lowest_kept(probabilities[:, k], truth[:, k] > 0.5, who, coverage) for k in columns)
    if not is_multi_label:
        return Conformal(coverage, present, split)
    absent = tuple(1.0 - _lowest_kept(1.0 - probabilities[:, k], truth[:, k] < 0.5, who, coverage) for k in columns)
    return Conformal(coverage, present, split, absent)


def _lowest_kept(scores: Floats, chosen: npt.NDArray[np.bool_], patients: Words, coverage: float) -> float:
    """The score from which a film is kept, so that this share of patients like those of the chosen films is; 0 for too few."""
    if len(set(patients[chosen])) < LEAST:
        return 0.0
    knots, ranks = _expected_ranks(scores)
    drawn = _one_film_each(np.interp(scores[chosen], knots, ranks), patients[chosen])
    count = drawn.shape[1]
    ordered = np.pad(-np.sort(-drawn, axis=1), ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))  # from 1 down to 0
    place, share = divmod((count + 1) * coverage, 1.0)
    kept = (1 - share) * ordered[:, int(place)] + share * ordered[:, int(place) + 1]
    return float(np.interp(kept.mean(), ranks, knots))


def _expected_ranks(scores: Floats) -> tuple[Floats, Floats]:
    """Distinct scores from 0 to 1, and the share of the class's films below each as the scores themselves expect it.

    A film's score is the probability that it is of the class, so it counts as that much of a film, half of it at its own
    score. Both ascend, from 0 to 1.
    """
    knots, place = np.unique(np.concatenate([[0.0], scores, [1.0]]), return_inverse=True)
    least = np.finfo(np.float64).tiny  # so that scores of nothing but zeros have a scale too
    films = np.bincount(place, weights=np.concatenate([[0.0], scores, [least]]))
    middle = np.cumsum(films) - films / 2
    return knots, np.asarray(middle / middle[-1])


def _one_film_each(scores: Floats, patients: Words) -> Floats:
    """(DRAWS, patients) scores, a film of each patient drawn at random; the same whatever the order of the films."""
    order = np.lexsort((scores, patients))
    _, first, films = np.unique(patients[order], return_index=True, return_counts=True)
    if (films == 1).all():
        return scores[order][None]
    picked = (np.random.default_rng(0).random((DRAWS, len(films))) * films).astype(np.int64)
    return np.asarray(scores[order][first + picked])


def set_words(conformal: Conformal, probabilities: Floats) -> Words:
    """(N, K) of "present", "absent" and "uncertain"."""
    possible = may_be(conformal, probabilities)
    assert possible is not None
    present, absent = possible
    return np.where(present == absent, "uncertain", np.where(present, "present", "absent"))


def in_set(conformal: Conformal, probabilities: Floats, held: bool) -> npt.NDArray[np.float64]:
    """(N, K): 1 where "present" (or, not held, "absent") is in the set as the thresholds make it, which may hold neither."""
    if held:
        return (probabilities >= np.array(conformal.thresholds)).astype(np.float64)
    return (probabilities <= np.array(conformal.absent)).astype(np.float64)


def covered(words: Words, truth: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(N, K): 1 where the set holds the truth, 0 where not, NaN where the truth is unknown."""
    right = (words == "uncertain") | ((words == "present") == (truth > 0.5))
    return np.where(np.isnan(truth), np.nan, right.astype(np.float64))


def coverage_of(words: Words, truth: npt.NDArray[np.float32], k: int, held: bool, patients: Sequence[str] = ()) -> Statistic:
    """Of films that have (or have not) label k: the share whose set holds the truth; of patients where these are given."""
    return share_of(covered(words, truth)[:, k], (truth[:, k] > 0.5) == held, patients)


def share_of(kept: Floats, chosen: npt.NDArray[np.bool_], patients: Sequence[str] = ()) -> Statistic:
    """The mean of `kept` (N,) over the chosen films; of patients where these are given: such films of one share his weight."""
    chosen, shares = chosen & ~np.isnan(kept), np.zeros(len(kept))
    if patients:
        _, place, films = np.unique(np.asarray(patients)[chosen], return_inverse=True, return_counts=True)
        shares[chosen] = 1.0 / films[place]
    else:
        shares[chosen] = 1.0
    return lambda weights: weighted_mean(np.where(chosen, kept, np.nan), weights * shares)


def undecided(words: Words, k: int) -> Statistic:
    """The share of films whose set for label k does not decide."""
    return lambda weights: weighted_mean((words[:, k] == "uncertain").astype(np.float64), weights)
