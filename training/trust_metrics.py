"""What an adapter's probabilities and conformal sets are worth on a split: before and after calibration, label by label.

    calibration error, brier          of the calibrated probabilities;  "... before": of the raw outputs
    coverage where present / absent   the same among those with, and those without, the label
    undecided                         the share of films whose set does not decide

Every number with a bootstrap interval over patients. `vesalius finetune` writes them into the card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.card import Conformal, Metric
from training.conformal import coverage_of, set_words, undecided
from training.metrics import Floats, PatientBootstrap, Statistic, brier, calibration_error

BEFORE = " before"


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
    for k, label in enumerate(judged.labels):
        positives = int(np.nansum(judged.truth[:, k]))
        for name, statistic in _statistics(judged, conformal, k):
            found = draws.estimate(statistic)
            low, high = (None if math.isnan(bound) else round(bound, 4) for bound in (found.low, found.high))
            metric = Metric(
                name, label, judged.split, round(found.value, 4), low, high, found.level, positives, len(judged.truth)
            )
            made.append(metric)
    return tuple(metric for metric in made if math.isfinite(metric.value))


def _statistics(judged: Judged, conformal: Conformal, k: int) -> Iterator[tuple[str, Statistic]]:
    truth = judged.truth[:, k]
    for ending, table in (("", judged.probabilities), (BEFORE, judged.before)):
        yield f"calibration error{ending}", _among_known(calibration_error, table[:, k], truth)
        yield f"brier{ending}", _among_known(brier, table[:, k], truth)
    if conformal.coverage is None:
        return
    words = set_words(conformal, judged.probabilities)
    present, absent = (coverage_of(words, judged.truth, k, held, judged.patients) for held in (True, False))
    yield "coverage where present", present
    yield "coverage where absent", absent
    yield "undecided", undecided(words, k)


def _among_known(of: Callable[..., Floats], scores: Floats, truth: npt.NDArray[np.float32]) -> Statistic:
    known = ~np.isnan(truth)

    def statistic(weights: Floats) -> Floats:
        return of(scores[known], truth[known], weights[:, known]) if known.any() else np.full(len(weights), np.nan)

    return statistic
