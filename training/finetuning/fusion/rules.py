"""Who answers for each subset of modalities, and how its logit becomes a probability: chosen on held-back cases.

The best single expert of a subset answers unless the product of experts or the joint network ranks the held-back cases
better by `Hurdle.margin`, and in most resamples of their patients: fusing must earn its place, so no subset does worse there
than its best single modality, and a gain that rests on a few patients does not count. Platt
scaling follows, for each subset on the cases that have it. Where too few cases have a subset, its product answers as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.tasks.account import Subset, subsets_of
from adapters.tasks.fusion import SubsetRule
from adapters.tasks.fusion_head import JOINT, PRODUCT
from training.measuring.metrics import PatientBootstrap, auroc, difference
from training.trust.calibrate import fit_platt

Floats = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]
Candidates = Mapping[Subset, Floats]
FEWEST_CASES = 5  # with and without the outcome
RESAMPLES = 500


@dataclass(frozen=True)
class Hurdle:
    """What several modalities must show before they answer together for their best single one.

    margin: by how much their AUROC is higher on the held-back cases; support: in what share of the resamples of patients
    it is higher at all.
    """

    margin: float
    support: float


@dataclass(frozen=True)
class ConformalBounds:
    """A probability of at least `present` keeps the outcome in the set, 1 - probability of at least `absent` its absence."""

    coverage: float
    present: float
    absent: float


def methods_of(modalities: Sequence[str]) -> tuple[str, ...]:
    return (*modalities, PRODUCT, JOINT)


def choose_rules(
    modalities: Sequence[str], made: Candidates, truth: Truth, patients: Sequence[str], hurdle: Hurdle
) -> tuple[SubsetRule, ...]:
    """One rule a subset, small ones first."""
    whose = np.asarray(patients, dtype=str)
    return tuple(_rule(modalities, subset, made[subset], truth, whose, hurdle) for subset in subsets_of(modalities))


def best_single(modalities: Sequence[str], subset: Subset, values: Floats, truth: Truth) -> str:
    """The modality of the subset whose expert ranks the cases that have all of it best."""
    known = ~np.isnan(values[:, -1])
    methods = methods_of(modalities)
    return max(subset, key=lambda name: _auroc(values[known, methods.index(name)], truth[known]))


def _rule(
    modalities: Sequence[str], subset: Subset, values: Floats, truth: Truth, patients: npt.NDArray[np.str_], hurdle: Hurdle
) -> SubsetRule:
    known = ~np.isnan(values[:, -1])
    told = truth[known]
    if min(told.sum(), (~told).sum()) < FEWEST_CASES:
        return SubsetRule(subset, subset[0] if len(subset) == 1 else PRODUCT, subset[0])
    methods = methods_of(modalities)
    chosen = single = best_single(modalities, subset, values, truth)
    if len(subset) > 1:
        alone, draws = values[known, methods.index(single)], PatientBootstrap(patients[known].tolist(), RESAMPLES)
        together = {name: values[known, methods.index(name)] for name in (PRODUCT, JOINT)}
        gains = {name: _auroc(scores, told) - _auroc(alone, told) for name, scores in together.items()}
        better = max(gains, key=lambda name: gains[name])
        if gains[better] >= hurdle.margin and _support(together[better], alone, told, draws) >= hurdle.support:
            chosen = better
    raw = values[known, methods.index(chosen)]
    platt = fit_platt(raw[:, None], told[:, None].astype(np.float64), "held back")
    return SubsetRule(subset, chosen, single, platt.slope[0], platt.bias[0], int(known.sum()))


def _support(together: Floats, alone: Floats, truth: Truth, draws: PatientBootstrap) -> float:
    """The share of the resamples in which `together` ranks better than `alone`."""
    gain = difference(lambda weights: auroc(together, truth, weights), lambda weights: auroc(alone, truth, weights))
    return float((draws.samples(gain) > 0).mean())


def answer(modalities: Sequence[str], rules: Sequence[SubsetRule], made: Candidates, subset: Subset) -> Floats:
    """(N,) calibrated logits of one subset; NaN where a case lacks a modality of it."""
    rule = next(rule for rule in rules if rule.modalities == subset)
    return np.asarray(rule.slope * made[subset][:, methods_of(modalities).index(rule.method)] + rule.bias)


def answer_own(modalities: Sequence[str], rules: Sequence[SubsetRule], own: Floats, present: npt.NDArray[np.bool_]) -> Floats:
    """(N,) calibrated logits of each case's own subset: all that is present (N, M) of it; own (N, M + 2) by method."""
    logits = np.full(len(present), np.nan)
    for rule in rules:
        rows = (present == [name in rule.modalities for name in modalities]).all(axis=1)
        logits[rows] = rule.slope * own[rows, methods_of(modalities).index(rule.method)] + rule.bias
    return logits


def answer_all(
    modalities: Sequence[str], rules: Sequence[SubsetRule], made: Candidates, present: npt.NDArray[np.bool_]
) -> Floats:
    """The same, from the logits of every subset."""
    own = np.full((len(present), len(modalities) + 2), np.nan)
    for subset, values in made.items():
        rows = (present == [name in subset for name in modalities]).all(axis=1)
        own[rows] = values[rows]
    return answer_own(modalities, rules, own, present)


def conformal_bounds(probabilities: Floats, truth: Truth, coverage: float) -> ConformalBounds:
    """Each outcome for itself (Vovk's label-conditional conformal prediction): as many are covered among those that had it."""
    return ConformalBounds(coverage, _bound(probabilities[truth], coverage), _bound(1.0 - probabilities[~truth], coverage))


def _bound(scores: Floats, coverage: float) -> float:
    place = int(np.floor((len(scores) + 1) * (1 - coverage)))
    return float(np.sort(scores)[place - 1]) if place >= 1 else 0.0


def _auroc(scores: Floats, truth: Truth) -> float:
    value = float(auroc(scores, truth)[0]) if len(scores) else float("nan")
    return 0.5 if np.isnan(value) else value
