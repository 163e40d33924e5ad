"""What an adapter's probabilities and conformal sets are worth on a split: before and after calibration, label by label.

    calibration error, brier          of the calibrated probabilities;  "... before": of the raw outputs
    coverage where present / absent   of films with, and films without, the label: whose set holds the truth
    ..., by patient                   the same, each patient counting once
    undecided                         the share of films whose set does not decide
    coverage where ... mean           over the labels that had enough patients for a threshold

Every number with a bootstrap interval over patients. `vesalius finetune` writes them into the card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.card import Conformal, Metric
from training.measuring.metrics import Floats, PatientBootstrap, Statistic, brier, calibration_error, mean_over
from training.trust.conformal import coverage_of, set_words, undecided

BEFORE = " before"
OF_SETS = ("coverage where present", "coverage where absent", "undecided")
BY_PATIENT, MEAN = ", by patient", " mean"


@dataclass(frozen=True, eq=False)
class Judged:
    """One split: calibrated probabilities and those before (N, K), truth (N, K) with NaN for unknown, whose films."""

    split: str
    labels: tuple[str, ...]
    probabilities: Floats
    before: Floats
    truth: npt.NDArray[np.float32]
    patients: Sequence[str]


def trust_metrics(judged: Judged, conformal: Conformal, resamples: int = 500) -> tuple[Metric, ...]:
    """The measures named at the top of this file; what cannot be measured is left out."""
    draws = PatientBootstrap(judged.patients, resamples)
    made = []

    def add(name: str, label: str, statistic: Statistic, positives: int | None) -> None:
        found = draws.estimate(statistic)
        low, high = (None if math.isnan(bound) else round(bound, 4) for bound in (found.low, found.high))
        films = len(judged.truth)
        made.append(Metric(name, label, judged.split, round(found.value, 4), low, high, found.level, positives, films))

    for k, label in enumerate(judged.labels):
        for name, statistic in _statistics(judged, conformal, k):
            add(name, label, statistic, int(np.nansum(judged.truth[:, k])))
    for name, statistic in _means(judged, conformal):
        add(name, "", statistic, None)
    return tuple(metric for metric in made if math.isfinite(metric.value))


def _statistics(judged: Judged, conformal: Conformal, k: int) -> Iterator[tuple[str, Statistic]]:
    truth = judged.truth[:, k]
    for ending, table in (("", judged.probabilities), (BEFORE, judged.before)):
        yield f"calibration error{ending}", _among_known(calibration_error, table[:, k], truth)
        yield f"brier{ending}", _among_known(brier, table[:, k], truth)
    if conformal.coverage is None:
        return
    words = set_words(conformal, judged.probabilities)
    for held, name in ((True, OF_SETS[0]), (False, OF_SETS[1])):
        yield name, coverage_of(words, judged.truth, k, held)
        yield name + BY_PATIENT, coverage_of(words, judged.truth, k, held, judged.patients)
    yield OF_SETS[2], undecided(words, k)


def _means(judged: Judged, conformal: Conformal) -> Iterator[tuple[str, Statistic]]:
    """Both coverages over the labels that had enough patients, by film and by patient."""
    if conformal.coverage is None:
        return
    words, labels = set_words(conformal, judged.probabilities), range(len(judged.labels))
    able = {True: [k for k in labels if conformal.thresholds[k] > 0], False: list(labels)}
    if conformal.absent:
        able[False] = [k for k in labels if conformal.absent[k] < 1]
    for held, name in ((True, OF_SETS[0]), (False, OF_SETS[1])):
        for ending, patients in (("", ()), (BY_PATIENT, judged.patients)):
            each = [coverage_of(words, judged.truth, k, held, patients) for k in able[held]]
            if len(each) > 1:
                yield f"{name}{ending}{MEAN}", mean_over(each)


def is_of_sets(metric: Metric) -> bool:
    """Whether the figure is one of the conformal thresholds, and ends with them."""
    return metric.name.removesuffix(MEAN).removesuffix(BY_PATIENT) in OF_SETS


def _among_known(of: Callable[..., Floats], scores: Floats, truth: npt.NDArray[np.float32]) -> Statistic:
    known = ~np.isnan(truth)

    def statistic(weights: Floats) -> Floats:
        return of(scores[known], truth[known], weights[:, known]) if known.any() else np.full(len(weights), np.nan)

    return statistic
