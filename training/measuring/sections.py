"""Sections of a report: how well scores tell films apart, in whom, how well probabilities are calibrated.

The first model is the subject; the others are baselines on the same films. All intervals resample patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from training.manifests.manifest import Row
from training.measuring import metrics
from training.measuring.metrics import Floats, PatientBootstrap, Statistic
from training.measuring.plots import interval_plot, reliability_plot
from training.measuring.report import Measure, Section
from training.measuring.scoring import Question, Scored, Truth

GROUPS = ("view", "sex", "age", "orig_size")
AGE_BANDS = ((0, 40, "under 40"), (40, 60, "40 to 59"), (60, 200, "60 and over"))
MEAN = "mean of findings"
_FUNCTIONS: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike, Floats | None], Floats]] = {
    "auroc": metrics.auroc,
    "average_precision": metrics.average_precision,
    "ece": metrics.calibration_error,
    "brier": metrics.brier,
    "sensitivity": metrics.sensitivity,
    "specificity": metrics.specificity,
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several models on the same rows of one source, asked the same questions."""

    source: str
    rows: tuple[Row, ...]
    questions: tuple[Question, ...]
    models: tuple[Scored, ...]
    resamples: int = 1000
    seed: int = 0
    min_count: int = 10

    @property
    def subject(self) -> Scored:
        return self.models[0]

    @cached_property
    def draws(self) -> PatientBootstrap:
        return PatientBootstrap([row.patient_id for row in self.rows], self.resamples, self.seed)

    @property
    def findings(self) -> tuple[Question, ...]:
        """Without "normal", which is derived from the others and so is not averaged with them."""
        return tuple(question for question in self.questions if question.label != "normal")

    def can_answer(self, model: Scored) -> bool:
        return all(question.label in model.scores for question in self.questions)

    def among(self, member: Truth) -> Comparison:
        """The same comparison on some of the rows; labels that become too rare there are left out."""
        kept = np.flatnonzero(member)
        questions = [Question(q.label, q.truth[kept], q.asked[kept]) for q in self.questions]
        return replace(
            self,
            rows=tuple(self.rows[place] for place in kept),
            questions=tuple(q for q in questions if self.min_count <= q.positives <= q.films - self.min_count),
            models=tuple(
                replace(model, scores={label: score[kept] for label, score in model.scores.items()}) for model in self.models
            ),
        )


def statistic(measure: str, model: Scored, question: Question) -> Statistic:
    """auroc, average_precision, ece, brier, sensitivity or specificity of one model at one question."""
    function = _FUNCTIONS[measure]
    held = model.scores[question.label][question.asked]
    is_decision = measure in ("sensitivity", "specificity")
    scores = (held >= model.thresholds[question.label]).astype(np.float64) if is_decision else held
    truth = question.truth[question.asked]

    def measured(weights: Floats) -> Floats:
        return function(scores, truth, weights[:, question.asked])

    return measured


def discrimination(comparison: Comparison) -> Section:
    """AUROC of every model, average precision of the subject, and what the subject gains over each baseline."""
    measures: list[Measure] = []
    groups = [(MEAN, comparison.findings)] if len(comparison.findings) > 1 else []
    groups += [(question.label, (question,)) for question in comparison.questions]
    for label, questions in groups:
        measures += _compare(comparison, label, questions)
    shown = [label for label, _ in groups]
    plot = interval_plot(
        f"auroc-{comparison.source}.png",
        f"{comparison.source}: AUROC",
        shown,
        {model.by: [m.estimate for m in measures if m.by == model.by and m.name == "auroc"] for model in comparison.models},
    )
    note = f"{len(comparison.rows)} films of {comparison.draws.patients} patients; AP is average precision."
    notes = " ".join(f"{model.by}: {model.note}." for model in comparison.models if model.note)
    return Section(f"{comparison.source}: telling films apart", f"{note} {notes}".strip(), tuple(measures), plots=(plot,))


def _compare(comparison: Comparison, label: str, questions: Sequence[Question]) -> list[Measure]:
    films, positives = (questions[0].films, questions[0].positives) if len(questions) == 1 else (None, None)
    draws, subject = comparison.draws, comparison.subject

    def over(measure: str, model: Scored) -> Statistic:
        return metrics.mean_over([statistic(measure, model, question) for question in questions])

    def one(name: str, by: str, of: Statistic) -> Measure:
        estimate = draws.estimate(of)
        return Measure(name, estimate, by, label, films=films, positives=positives, source=comparison.source)

    found = [one("auroc", subject.by, over("auroc", subject))]
    found.append(one("average_precision", subject.by, over("average_precision", subject)))
    for model in comparison.models[1:]:
        found.append(one("auroc", model.by, over("auroc", model)))
        gain = metrics.difference(over("auroc", subject), over("auroc", model))
        found.append(one("gain", f"over {model.by}", gain))
    return found


# --- groups ----------------------------------------------------------------------------------------------------------


def subgroups(comparison: Comparison) -> tuple[Section, ...]:
    """AUROC among films of one view, sex, age band and original size; view also finding by finding."""
    measures: list[Measure] = []
    for name in GROUPS:
        values = [group_of(row, name) for row in comparison.rows]
        for value in sorted({value for value in values if value}):
            part = comparison.among(np.array([one == value for one in values], dtype=bool))
            measures += _group_measures(part, f"{name}={value}")
    if not measures:
        return ()
    title = f"{comparison.source}: in whom"
    means = Section(
        title,
        "Mean AUROC over the findings with enough films in the group; groups differ in which findings those are.",
        tuple(measure for measure in measures if measure.label == MEAN),
        rows=("group",),
        columns=("by", "name"),
    )
    views = tuple(m for m in measures if m.label != MEAN and m.group.startswith("view=") and m.name == "auroc")
    by_view = Section(f"{title}, AP and PA apart", "", views, rows=("label", "group"), columns=("by", "name"))
    rest = tuple(m for m in measures if m.label != MEAN and not m.group.startswith("view="))
    details = Section(f"{title}, finding by finding", "", rest, rows=("label", "group"), columns=("by", "name"))
    return tuple(section for section in (means, by_view, details) if section.measures)


def _group_measures(part: Comparison, group: str) -> list[Measure]:
    if not part.findings:
        return []
    found = []
    for model in part.models:
        each = [statistic("auroc", model, question) for question in part.findings]
        mean = part.draws.estimate(metrics.mean_over(each))
        found.append(Measure("auroc", mean, model.by, MEAN, group, len(part.rows), source=part.source))
        for question, of in zip(part.findings, each, strict=True):
            estimate, counts = part.draws.estimate(of), (question.films, question.positives)
            found.append(Measure("auroc", estimate, model.by, question.label, group, *counts, source=part.source))
    return found


def group_of(row: Row, name: str) -> str:
    """The row's value as a word, "" where unknown; ages in bands."""
    value = row.get(name)
    if value is None or value == "":
        return ""
    if name == "age":
        return next((title for low, high, title in AGE_BANDS if low <= float(value) < high), "")
    if name == "orig_size":
        return "x".join(str(side) for side in value) if isinstance(value, list) else str(value)
    return str(value)


# --- calibration -----------------------------------------------------------------------------------------------------


def calibration(comparison: Comparison) -> Section | None:
    """ECE, Brier score, and what the model's own thresholds give; None where scores are not probabilities."""
    models = [model for model in comparison.models if model.is_probability]
    if comparison.subject not in models:
        return None
    measures = []
    for question in comparison.questions:
        for model in models:
            names = ["ece", "brier"]
            names += ["sensitivity", "specificity"] if question.label in model.thresholds else []
            for name in names:
                estimate = comparison.draws.estimate(statistic(name, model, question))
                counts = (question.films, question.positives)
                measures.append(Measure(name, estimate, model.by, question.label, "all", *counts, source=comparison.source))
    subject = comparison.subject
    curves = {
        question.label: metrics.reliability(subject.scores[question.label][question.asked], question.truth[question.asked])
        for question in comparison.questions
    }
    title = f"{comparison.source}: what a probability means"
    plot = reliability_plot(f"reliability-{comparison.source}.png", f"{subject.by} on {comparison.source}", curves)
    note = "ECE over ten bins of equal width; sensitivity and specificity at the thresholds of the adapter's card."
    return Section(title, note, tuple(measures), plots=(plot,))
