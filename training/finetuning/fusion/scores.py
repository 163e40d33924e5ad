"""Figures of the fusion task on one split: every subset by every method, the no-harm gap, baselines. No torch.

Gradient boosting sees the table alone, twice: with zeros for what is missing, and with NaN, which it can split on. Values
beyond detection stand at the border of the training rows for both. It learns from the same cases and the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier

from adapters.card import Metric
from adapters.tasks.account import Subset, subsets_of
from adapters.tasks.fusion import SubsetRule
from adapters.tasks.tabular import ABOVE, BELOW, CATEGORY, MISSING, TabularField
from training.finetuning.fusion.data import Case
from training.finetuning.fusion.fit import Part
from training.finetuning.fusion.rules import ConformalBounds, Hurdle, answer, answer_all, choose_rules, methods_of
from training.measuring.metrics import Estimate, PatientBootstrap, Statistic, auroc, brier, calibration_error, difference

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
ZEROS, NANS = "boosting, zeros", "boosting, NaN"
CHOSEN, SINGLE = "chosen", "best single"
RESAMPLES = 1000


@dataclass(frozen=True)
class Grid:
    """Mean AUROC by (missing rate in training, missing rate when asked)."""

    rates: tuple[float, ...]
    held: Mapping[tuple[float, float], float]
    test: Mapping[tuple[float, float], float]

    @staticmethod
    def auroc(logits: Floats, truth: Bools) -> float:
        known = ~np.isnan(logits)
        return float(auroc(logits[known], truth[known])[0])


@dataclass(frozen=True, eq=False)
class FusionScores:
    """One split. made: logits by subset and method; present (N, M); boosted: the baselines' scores (N,).

    parts: where the cases were cross-fitted, so that the choice of rules can be cross-fitted too.
    """

    split: str
    cases: tuple[Case, ...]
    modalities: tuple[str, ...]
    made: Mapping[Subset, Floats]
    rules: tuple[SubsetRule, ...]
    present: Bools
    boosted: Mapping[str, Floats]
    bounds: ConformalBounds
    parts: tuple[Part, ...] = ()
    resamples: int = RESAMPLES

    @cached_property
    def truth(self) -> Bools:
        return np.array([case.truth for case in self.cases], dtype=bool)

    @property
    def patients(self) -> list[str]:
        return [case.patient for case in self.cases]

    @cached_property
    def full(self) -> Floats:
        """(N,) calibrated logits from all that each case has."""
        return answer_all(self.modalities, self.rules, self.made, self.present)

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """Those that some cases with and some without the outcome have."""
        return tuple(subset for subset in subsets_of(self.modalities) if len(set(self.truth[self.known(subset)])) == 2)

    def known(self, subset: Subset) -> Bools:
        """(N,) the cases that have every modality of the subset."""
        return ~np.isnan(self.made[subset][:, -1])

    def raw(self, subset: Subset, method: str) -> Floats:
        """(N,) logits of the subset by "product", "joint", a modality, "best single" or "chosen"."""
        if method == CHOSEN:
            return answer(self.modalities, self.rules, self.made, subset)
        name = self.single(subset) if method == SINGLE else method
        return np.asarray(self.made[subset][:, methods_of(self.modalities).index(name)])

    def single(self, subset: Subset) -> str:
        """The modality of the subset that alone did best on the held-back cases: what "no harm" is measured against."""
        return next(rule.single for rule in self.rules if rule.modalities == subset)

    def estimate(self, scores: Floats, known: Bools | None = None) -> Estimate:
        """AUROC with patients resampled, among the known cases."""
        kept = ~np.isnan(scores) if known is None else known
        return self._draws(kept).estimate(lambda weights: auroc(scores[kept], self.truth[kept], weights))

    def compare(self, first: Floats, second: Floats, known: Bools | None = None) -> Estimate:
        """AUROC of `first` minus that of `second` on the same cases and resamples."""
        kept = ~(np.isnan(first) | np.isnan(second)) if known is None else known
        both = (self._auroc(first, kept), self._auroc(second, kept))
        return self._draws(kept).estimate(difference(*both))

    def compare_within_parts(self, first: Floats, second: Floats) -> Estimate:
        """The same, over the pairs of cases that one member answered: logits of two members are on no common scale."""
        kept = ~(np.isnan(first) | np.isnan(second))
        groups = [np.isin(np.arange(len(kept)), part.held)[kept] for part in self.parts]
        statistics = [self._within(scores[kept], self.truth[kept], groups) for scores in (first, second)]
        return self._draws(kept).estimate(difference(*statistics))

    @staticmethod
    def _within(scores: Floats, truth: Bools, groups: Sequence[Bools]) -> Statistic:
        """AUROC over the pairs inside each group, all pairs weighing alike."""

        def statistic(weights: Floats) -> Floats:
            won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
            for group in groups:
                own = weights[:, group]
                count = own[:, truth[group]].sum(axis=1) * own[:, ~truth[group]].sum(axis=1)
                won += count * np.nan_to_num(auroc(scores[group], truth[group], own))
                pairs += count
            return np.asarray(np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))

        return statistic

    def full_auroc(self) -> float:
        return float(auroc(self.full, self.truth)[0])

    def probabilities(self) -> Floats:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * self.full)))

    def calibration(self) -> tuple[Estimate, Estimate]:
        """Expected calibration error and Brier score of the full answers."""
        chances, draws = self.probabilities(), self.draws
        return (
            draws.estimate(lambda weights: calibration_error(chances, self.truth, weights)),
            draws.estimate(lambda weights: brier(chances, self.truth, weights)),
        )

    def nested(self, hurdle: Hurdle) -> Mapping[Subset, Floats]:
        """Each subset's chosen logits where the rule, too, was chosen without the case's part of the patients."""
        made = {subset: np.full(len(self.cases), np.nan) for subset in self.made}
        for part in self.parts:
            rest = np.setdiff1d(np.arange(len(self.cases)), part.held)
            others = {subset: values[rest] for subset, values in self.made.items()}
            patients = [self.patients[place] for place in rest]
            rules = choose_rules(self.modalities, others, self.truth[rest], patients, hurdle)
            for subset in made:
                made[subset][part.held] = answer(self.modalities, rules, self.made, subset)[part.held]
        return made

    def among(self, kept: Bools) -> FusionScores:
        """Some of the cases. Parts that leave some out are not kept."""
        if kept.all():
            return self
        return replace(
            self,
            cases=tuple(case for case, is_in in zip(self.cases, kept, strict=True) if is_in),
            made={subset: values[kept] for subset, values in self.made.items()},
            present=self.present[kept],
            boosted={name: values[kept] for name, values in self.boosted.items()},
            parts=(),
        )

    @cached_property
    def draws(self) -> PatientBootstrap:
        return self._draws(np.ones(len(self.cases), bool))

    def _auroc(self, scores: Floats, kept: Bools) -> Statistic:
        return lambda weights: auroc(scores[kept], self.truth[kept], weights)

    def _draws(self, kept: Bools) -> PatientBootstrap:
        return PatientBootstrap([p for p, is_in in zip(self.patients, kept, strict=True) if is_in], self.resamples)


def no_harm(scores: FusionScores) -> dict[Subset, Estimate]:
    """For each subset of several modalities: AUROC of the answer minus that of its best single modality."""
    return {
        subset: scores.compare(scores.raw(subset, CHOSEN), scores.raw(subset, SINGLE))
        for subset in scores.subsets
        if len(subset) > 1
    }


def card_metrics(scores: FusionScores) -> list[Metric]:
    """What the card tells of a split."""
    error, squared = scores.calibration()
    made = [_metric(scores, "auroc", "all that is known", scores.estimate(scores.full))]
    made += [
        _metric(scores, "auroc", " + ".join(subset), scores.estimate(scores.raw(subset, CHOSEN)), scores.known(subset))
        for subset in scores.subsets
    ]
    made += [_metric(scores, "no-harm gap", " + ".join(subset), gap) for subset, gap in no_harm(scores).items()]
    for name, values in scores.boosted.items():
        made.append(_metric(scores, f"{name} auroc", "table", scores.estimate(values)))
        made.append(_metric(scores, f"gain over {name}", "all that is known", scores.compare(scores.full, values)))
    made += [_metric(scores, "calibration error", "", error), _metric(scores, "brier", "", squared)]
    return [metric for metric in made if metric.value == metric.value]


def _metric(scores: FusionScores, name: str, label: str, found: Estimate, known: Bools | None = None) -> Metric:
    low, high = (None if bound != bound else round(bound, 4) for bound in (found.low, found.high))
    kept = np.ones(len(scores.cases), bool) if known is None else known
    value = found.value if found.value != found.value else round(found.value, 4)
    return Metric(name, label, scores.split, value, low, high, found.level, int(scores.truth[kept].sum()), int(kept.sum()))


# --- gradient boosting on the table ----------------------------------------------------------------------------------


def score_boosting(
    parts: Sequence[Part], fields: Sequence[TabularField], learning: Sequence[Case], test: Sequence[Case], seed: int
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Scores of both baselines on the learning cases, each held back from its model, and on test by all of them."""
    held: dict[str, Floats] = {}
    tested: dict[str, Floats] = {}
    truth = np.array([case.truth for case in learning], dtype=bool)
    if not fields:
        return held, tested
    tables = [_matrix(cases, fields) for cases in (learning, test)]
    for name, filled in ((ZEROS, [np.nan_to_num(table) for table in tables]), (NANS, tables)):
        own = np.full(len(learning), np.nan)
        for part in parts:
            model = _boosting(seed).fit(filled[0][part.learn], truth[part.learn])
            own[part.held] = model.decision_function(filled[0][part.held])
        held[name] = own
        if len(test):
            tested[name] = _boosting(seed).fit(filled[0], truth).decision_function(filled[1])
    return held, tested


def _boosting(seed: int) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(random_state=seed)


def _matrix(cases: Sequence[Case], fields: Sequence[TabularField]) -> Floats:
    return np.array([[_number(field, case) for field in fields] for case in cases]).reshape(len(cases), len(fields))


def _number(field: TabularField, case: Case) -> float:
    state, value = field.read(case.table.get(field.name))
    if state == MISSING:
        return float("nan")
    if state in (BELOW, ABOVE):
        return float(field.seen_low if state == BELOW else field.seen_high)  # type: ignore[arg-type]
    return float(field.categories.index(str(value)) + 1) if field.kind == CATEGORY else float(value)  # type: ignore[arg-type]
