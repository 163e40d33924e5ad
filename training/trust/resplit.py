"""What conformal thresholds cover when val and test are dealt anew, by patient, many times.

Coverage on one split varies: with thresholds from n patients and m to measure on, by about
sqrt(coverage * (1 - coverage) * (1 / n + 1 / m)), eleven points at n = m = 15. So a figure of one split says neither that
thresholds hold nor that they do not; the mean over many splits of the same films does. Where the split that there is lies
outside what the new ones give, its patients differ.

    own        the set as the two thresholds make it, which the stated coverage is about
    served     as it is told: a set of neither is told as undecided, and of classes the likeliest is always left. Never less
    by film    the same as own with every film alike, so that patients with many count more: not what is stated
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapters.card import Conformal
from training.measuring.metrics import LEVEL, Estimate, Floats, PatientBootstrap, Statistic, interval
from training.trust.conformal import covered, fit_conformal, in_set, set_words, share_of
from training.trust.trust_metrics import Judged

NEAR = 0.02


class Counts(NamedTuple):
    """One coverage, counted three ways (see above)."""

    own: Estimate
    served: Estimate
    by_film: Estimate


@dataclass(frozen=True)
class Coverage:
    """Of patients with the label (held) or without it, one film of each: the share whose set holds the truth.

    patients: of val and of test, that have such films. resplit: the mean over new splits, and between what 95 % of them lie.
    one: on test, by the thresholds fitted on val, with the bootstrap over patients of test.
    as_far: the share of new splits that lie as far from their mean as `one` does. near: the share of new splits that lie
    within two points (NEAR) of what is stated.
    """

    label: str
    held: bool
    patients: tuple[int, int]
    resplit: Counts
    one: Counts
    as_far: float
    near: float


def coverages(val: Judged, test: Judged, conformal: Conformal, splits: int, seed: int, resamples: int) -> tuple[Coverage, ...]:
    """Of films with each label, then of those without. conformal: fitted on val."""
    pool, draws = _joined(val, test), PatientBootstrap(test.patients, resamples, seed)
    dealt = []
    for rest, fitted in _refitted(pool, len(set(val.patients)), conformal, splits, seed):
        even = np.ones((1, len(rest.truth)))
        dealt.append({side: [statistic(even)[0] for statistic in counted] for side, counted in rates(rest, fitted).items()})
    made = []
    for (k, held), counted in rates(test, conformal).items():
        shares = np.array([one[k, held] for one in dealt])  # (splits, 3)
        resplit, one = Counts(*map(_spread, shares.T)), Counts(*map(draws.estimate, counted))
        as_far = np.abs(shares[:, 0] - resplit.own.value) >= abs(one.own.value - resplit.own.value) - 1e-9
        patients = (_patients(val, k, held), _patients(test, k, held))
        near = _near(shares[:, 0], conformal.coverage)
        made.append(Coverage(val.labels[k], held, patients, resplit, one, float(as_far.mean()), near))
    return tuple(made)


def rates(judged: Judged, conformal: Conformal) -> dict[tuple[int, bool], tuple[Statistic, Statistic, Statistic]]:
    """By label and truth: coverage of the sets themselves, as they are served, and by film."""
    served = covered(set_words(conformal, judged.probabilities), judged.truth)
    made = {}
    for held in (True, False) if conformal.absent else (True,):
        own = in_set(conformal, judged.probabilities, held)
        for k in range(len(judged.labels)):
            chosen = (judged.truth[:, k] > 0.5) if held else (judged.truth[:, k] < 0.5)
            made[k, held] = (
                share_of(own[:, k], chosen, judged.patients),
                share_of(served[:, k], chosen, judged.patients),
                share_of(own[:, k], chosen),
            )
    return made


def _refitted(pool: Judged, fitted: int, like: Conformal, splits: int, seed: int) -> Iterator[tuple[Judged, Conformal]]:
    """New splits: the films of all patients but `fitted`, and the thresholds from the films of those."""
    assert like.coverage is not None
    random, (names, place) = np.random.default_rng(seed), np.unique(np.asarray(pool.patients), return_inverse=True)
    for _ in range(splits):
        is_fitted = (random.permutation(len(names)) < fitted)[place]
        val, test = _among(pool, is_fitted), _among(pool, ~is_fitted)
        many = bool(like.absent)
        given = (val.probabilities, val.truth, val.patients, "val")
        yield test, fit_conformal(*given, is_multi_label=many, coverage=like.coverage)


def _near(shares: Floats, stated: float | None) -> float:
    assert stated is not None
    known = shares[~np.isnan(shares)]
    return float((np.abs(known - stated) <= NEAR + 1e-9).mean()) if len(known) else float("nan")


def _spread(shares: Floats) -> Estimate:
    """The mean, and between what LEVEL of the splits lie; of those that have such a film."""
    known = shares[~np.isnan(shares)]
    return interval(float(known.mean()) if len(known) else float("nan"), shares, LEVEL)


def _patients(judged: Judged, k: int, held: bool) -> int:
    chosen = (judged.truth[:, k] > 0.5) if held else (judged.truth[:, k] < 0.5)
    return len({patient for patient, is_one in zip(judged.patients, chosen, strict=True) if is_one})


def _joined(first: Judged, second: Judged) -> Judged:
    return Judged(
        f"{first.split} and {second.split}",
        first.labels,
        np.concatenate([first.probabilities, second.probabilities]),
        np.concatenate([first.before, second.before]),
        np.concatenate([first.truth, second.truth]),
        [*first.patients, *second.patients],
    )


def _among(judged: Judged, chosen: npt.NDArray[np.bool_]) -> Judged:
    return replace(
        judged,
        probabilities=judged.probabilities[chosen],
        before=judged.before[chosen],
        truth=judged.truth[chosen],
        patients=[judged.patients[place] for place in np.flatnonzero(chosen).tolist()],
    )
