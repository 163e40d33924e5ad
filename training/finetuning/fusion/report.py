"""The report of the fusion task, written beside the adapter: every subset, no harm, baselines, what is missing, accounts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapters.card import AdapterCard
from adapters.tasks.fusion import FusionPredictor, FusionResult
from adapters.tasks.fusion_head import JOINT, PRODUCT
from adapters.tasks.tabular import ABOVE, BELOW, MISSING
from training.finetuning.fusion.data import Case
from training.finetuning.fusion.rules import Hurdle
from training.finetuning.fusion.scores import CHOSEN, SINGLE, FusionScores, Grid, no_harm
from training.loop import LoopReport
from training.measuring.metrics import reliability, weighted_mean
from training.measuring.plots import interval_plot, reliability_plot
from training.measuring.report import Measure, Report, Section, Table, hardware, write_report

GROUPS = ("view", "sex")
FEWEST = 5  # cases with and without the outcome that a group needs


@dataclass(frozen=True, eq=False)
class Told:
    """What was known of an example, and what was answered."""

    words: str
    truth: bool
    result: FusionResult


@dataclass(frozen=True, eq=False)
class Fusion:
    """What the report tells. scored: held back first, then test; learning: the cases that the field table counts."""

    card: AdapterCard
    scored: tuple[FusionScores, ...]
    grid: Grid
    loop: LoopReport
    predictor: FusionPredictor
    learning: Sequence[Case]
    examples: Sequence[Told]
    removed: int
    hurdle: Hurdle
    seconds: float


def write_fusion_report(out: Path, told: Fusion) -> Path:
    """OUT/report.md, report.json and plots."""
    sections: list[Section] = []
    for scores in told.scored:
        sections += score_sections(scores, told.hurdle)
    sections += [_grid(told.grid), _accounts(told.examples), _fields(told), _rules(told.card)]
    return write_report(Report(f"Report of {told.card.name}", _about(told), tuple(sections)), out)


def score_sections(scores: FusionScores, hurdle: Hurdle) -> list[Section]:
    """Of one split."""
    made = [_subsets(scores), _harm(scores, hurdle), _baselines(scores), _calibration(scores), _groups(scores)]
    return [section for section in made if section.measures or section.tables]


def _subsets(scores: FusionScores) -> Section:
    measures, chosen = [], []
    for subset in scores.subsets:
        known = scores.known(subset)
        count, told = int(known.sum()), int(scores.truth[known].sum())
        for method in (SINGLE, *((PRODUCT, JOINT) if len(subset) > 1 else ()), CHOSEN):
            found = scores.estimate(scores.raw(subset, method))
            measures.append(Measure("auroc", found, method, _name(subset), films=count, positives=told))
        chosen.append(measures[-1].estimate)
    note = (
        "AUROC among the cases that have every modality of the subset, whatever else they have. Best single: the modality "
        "of the subset that ranks the held-back cases best; chosen: who answers for the subset in the adapter."
    )
    names = [_name(subset) for subset in scores.subsets]
    plot = interval_plot(f"subsets-{_file(scores.split)}.png", f"Every subset, {scores.split}", names, {CHOSEN: chosen})
    return Section(f"{scores.split}: every subset of modalities", note, tuple(measures), plots=(plot,))


def _harm(scores: FusionScores, hurdle: Hurdle) -> Section:
    measures = []
    for subset, gap in no_harm(scores).items():
        measures.append(Measure("gap", gap, CHOSEN, _name(subset)))
        if scores.parts:
            nested = scores.compare_within_parts(scores.nested(hurdle)[subset], scores.raw(subset, SINGLE))
            measures.append(Measure("gap", nested, "chosen without the case", _name(subset)))
    note = "AUROC of the subset's answer minus that of its best single modality, on the same cases and resamples."
    if scores.parts:
        note += (
            " The rules were chosen on these cases, so the first column cannot be below zero by much; in the second each rule "
            "was chosen without the patients it answers for, and only cases that the same member and rule answered are ranked "
            "against each other."
        )
    return Section(f"{scores.split}: no harm", note, tuple(measures))


def _baselines(scores: FusionScores) -> Section:
    measures = [Measure("auroc", scores.estimate(scores.full), "fusion", "all that is known", films=len(scores.cases))]
    table = tuple(name for name in scores.modalities if name not in ("film", "note"))
    if table in scores.subsets:
        measures.append(Measure("auroc", scores.estimate(scores.raw(table, CHOSEN)), "fusion", _name(table)))
    for name, values in scores.boosted.items():
        measures.append(Measure("auroc", scores.estimate(values), name, "the table", films=len(scores.cases)))
        measures.append(Measure("auroc", scores.compare(scores.full, values), "fusion", f"gain over {name}"))
    note = (
        "Gradient boosting (scikit-learn) sees the same fields of the same cases, with zeros or with NaN for what is missing."
    )
    return Section(f"{scores.split}: beside gradient boosting", note, tuple(measures), ("label",), ("by", "name"))


def _calibration(scores: FusionScores) -> Section:
    error, squared = scores.calibration()
    chances, truth, bounds = scores.probabilities(), scores.truth, scores.bounds
    draws = scores.draws
    yes, no = chances >= bounds.present, 1 - chances >= bounds.absent
    covered = np.where(truth, yes, no)
    measures = [
        Measure("ece", error, "fusion", "all that is known", films=len(truth), positives=int(truth.sum())),
        Measure("brier", squared, "fusion", "all that is known"),
        Measure("coverage", draws.estimate(lambda w: weighted_mean(covered, w)), "conformal", "all that is known"),
        Measure("set size", draws.estimate(lambda w: weighted_mean(yes * 1.0 + no, w)), "conformal", "all that is known"),
    ]
    curve = {scores.split: reliability(chances, truth, 5)}
    plot = reliability_plot(f"reliability-{_file(scores.split)}.png", f"Reliability, {scores.split}", curve)
    note = f"Probabilities from all that is known. Conformal sets aim at {bounds.coverage:.0%} of each outcome."
    return Section(f"{scores.split}: calibration", note, tuple(measures), ("label",), ("by", "name"), plots=(plot,))


def _groups(scores: FusionScores) -> Section:
    measures = []
    for name in GROUPS:
        values = [str(case.rows[0].get(name)) for case in scores.cases]
        for value in sorted(set(values)):
            kept = np.array([one == value for one in values])
            told = int(scores.truth[kept].sum())
            if min(told, int(kept.sum()) - told) >= FEWEST and not kept.all():
                found = scores.estimate(scores.full, kept)
                measures.append(
                    Measure("auroc", found, "fusion", group=f"{name}={value}", films=int(kept.sum()), positives=told)
                )
    return Section(f"{scores.split}: who they are", "", tuple(measures), ("group",), ("by", "name"))


def _grid(grid: Grid) -> Section:
    tables = []
    for split, cells in (("held back", grid.held), ("test", grid.test)):
        if not cells:
            continue
        lines = [(f"{learnt:.1f}", *(f"{cells[learnt, asked]:.3f}" for asked in grid.rates)) for learnt in grid.rates]
        tables.append(Table((f"{split}: missing in training", *(f"asked {rate:.1f}" for rate in grid.rates)), tuple(lines)))
    note = (
        "Each modality is taken away at random at this rate, of a case one always stays; AUROC, mean of the draws. Every row "
        "is a head fitted anew with that much missing, rules included."
    )
    return Section("What is missing, in training and when asked", note, tables=tuple(tables))


def _accounts(examples: Sequence[Told]) -> Section:
    tables = []
    for told in examples:
        result = told.result
        lines = [
            ("all", f"{result.probability:.3f}", f"prior {result.prior:.3f}", result.method),
            *((name, f"{chance:.3f}", f"{result.shapley[name]:+.2f}", "") for name, chance in result.unimodal.items()),
            *((_name(s.modalities), f"{s.probability:.3f}", "", s.method) for s in result.subsets if len(s.modalities) > 1),
        ]
        title = f"{told.words}: {result.label} {'came' if told.truth else 'did not come'}"
        tables.append(Table((title, "probability", "Shapley (logit)", "by"), tuple(lines)))
    note = (
        "Held-back figures are elsewhere; these are the finished adapter's answers to cases of the last split above. Shapley "
        "values sum to the logit of the answer minus that of the prior."
    )
    return Section("Accounts of single answers", note, tables=tuple(tables))


def _fields(told: Fusion) -> Section:
    lines = []
    for field in told.predictor.fields:
        states = Counter(field.read(case.table.get(field.name))[0] for case in told.learning)
        seen = ", ".join(field.categories) or f"{field.seen_low:g} to {field.seen_high:g} {field.unit}"
        count = len(told.learning)
        missing = f"{states[MISSING] / count:.0%}"
        lines.append((field.name, field.modality, seen, missing, str(states[BELOW]), str(states[ABOVE]), field.description))
    columns = ("field", "modality", "seen in training", "missing", "below detection", "above", "what it is")
    return Section("Fields of the table", "", tables=(Table(columns, tuple(lines)),) if lines else ())


def _rules(card: AdapterCard) -> Section:
    lines = tuple(
        (_name(rule["modalities"]), rule["single"], rule["method"], str(rule["cases"])) for rule in card.head["rules"]
    )
    note = (
        "Chosen on held-back cases: the best single modality, unless fusing ranks better by the recipe's margin, and in as "
        "many resamples of patients as its support asks."
    )
    return Section(
        "Who answers for which subset",
        note,
        tables=(Table(("subset", "best single", "who answers", "held-back cases"), lines),),
    )


def _about(told: Fusion) -> dict[str, object]:
    learning = told.learning
    return {
        "what": told.card.description,
        "outcome": told.card.labels[0],
        "base": {"name": told.card.base.name, "fingerprint": told.card.base.fingerprint[:12]},
        "learnt from": f"{len(learning)} cases of {len({case.patient for case in learning})} patients, "
        f"{sum(case.truth for case in learning)} with the outcome ({len({c.patient for c in learning if c.truth})} patients)",
        "splits": {scores.split: f"{len(scores.cases)} cases, {len(set(scores.patients))} patients" for scores in told.scored},
        "sentences cut from notes": told.removed or None,
        "tower": f"LoRA without labels, best epoch {told.loop.best_epoch + 1} of {len(told.loop.history)}, "
        f"agreement {told.loop.best_value:.3f}",
        "bootstrap": "1000 resamples of patients, 95 % percentile intervals",
        "time": f"{told.seconds:.0f} s",
        "hardware": hardware(),
        "limits": list(told.card.limits),
    }


def _name(subset: Sequence[str]) -> str:
    return " + ".join(subset)


def _file(split: str) -> str:
    return split.replace(" ", "-")
