"""What fine-tuning reports: scores of a split with patient-level intervals, beside the base's zero-shot answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters.card import AdapterCard, Calibration, Metric
from adapters.tasks.classification import NORMAL, calibrate
from training.finetuning.classification.label_table import LabelTable
from training.finetuning.classification.trainee import rankable
from training.loop import LoopReport
from training.measuring.metrics import Estimate, PatientBootstrap, Statistic, auroc, calibration_error, difference, mean_over
from training.processes import is_main

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scored:
    """One split's outputs (N, K), the same of the untrained adapter (zero-shot), and the truth."""

    split: str
    table: LabelTable
    truth: npt.NDArray[np.float32]  # NaN where a label says nothing of a film
    logits: Floats
    zero_shot: Floats
    patients: Sequence[str]
    resamples: int = 500

    @property
    def labels(self) -> tuple[str, ...]:
        return self.table.labels

    @cached_property
    def bootstrap(self) -> PatientBootstrap:
        return PatientBootstrap(self.patients, resamples=self.resamples)

    def metrics(self, calibration: Calibration, contrasts: Sequence[Sequence[str]] = ()) -> tuple[Metric, ...]:
        """AUROC per label, its mean, zero-shot's mean and the gain over it; calibration error; AUROC of "normal".

        contrasts: pairs of labels told apart among the films that carry exactly one of the two.
        """
        probabilities = self.probabilities(calibration)
        ours = [self._auroc(self.logits, k) for k in range(len(self.labels))]
        theirs = [self._auroc(self.zero_shot, k) for k in range(len(self.labels))]
        made = [self._metric("auroc", label, statistic) for label, statistic in zip(self.labels, ours, strict=True)]
        made += [
            self._metric("auroc mean", "", mean_over(ours)),
            self._metric("zero-shot auroc mean", "", mean_over(theirs)),
            self._metric("gain over zero-shot", "", difference(mean_over(ours), mean_over(theirs))),
        ]
        made += [self._metric("auroc", f"{one} against {other}", self._contrast(one, other)) for one, other in contrasts]
        made += [
            self._metric("calibration error", label, _among_known(calibration_error, probabilities[:, k], self.truth[:, k]))
            for k, label in enumerate(self.labels)
        ]
        if self.table.is_multi_label:
            normal = np.prod(1.0 - probabilities, axis=1)
            is_normal = np.where(np.isnan(self.truth).any(axis=1), np.nan, self.truth.sum(axis=1) == 0)
            is_normal[np.nansum(self.truth, axis=1) > 0] = 0.0
            made.append(self._metric("auroc", NORMAL, _among_known(auroc, normal, is_normal)))
        return tuple(metric for metric in made if math.isfinite(metric.value))

    def probabilities(self, how: Calibration) -> Floats:
        """(N, K) by that calibration."""
        is_one_choice = self.table.is_one_choice
        return calibrate(self.logits, how, not is_one_choice, () if is_one_choice else self.table.exclusive)

    def mean_auroc(self) -> float:
        statistics = [self._auroc(self.logits, k) for k in range(len(self.labels))]
        return float(mean_over(statistics)(np.ones((1, len(self.truth))))[0])

    def _contrast(self, one: str, other: str) -> Statistic:
        """How well the difference of their scores tells two labels apart."""
        first, second = self.labels.index(one), self.labels.index(other)
        truth = np.where(self.truth[:, first] + self.truth[:, second] == 1, self.truth[:, first], np.nan)
        return _among_known(auroc, self.logits[:, first] - self.logits[:, second], truth)

    def _auroc(self, logits: Floats, k: int) -> Statistic:
        return _among_known(auroc, rankable(logits, self.table.exclusive)[:, k], self.truth[:, k])

    def _metric(self, name: str, label: str, statistic: Statistic) -> Metric:
        estimate: Estimate = self.bootstrap.estimate(statistic)
        positives = int(np.nansum(self.truth[:, self.labels.index(label)])) if label in self.labels else None
        low, high = (None if math.isnan(bound) else round(bound, 4) for bound in (estimate.low, estimate.high))
        return Metric(name, label, self.split, round(estimate.value, 4), low, high, estimate.level, positives, len(self.truth))


def write_report(out: Path, card: AdapterCard, loop: LoopReport, films: Mapping[str, int]) -> None:
    """OUT/report.json and OUT/report.md, by one process for all of them."""
    if not is_main():
        return
    content = {
        "adapter": card.name,
        "base": asdict(card.base),
        "films": dict(films),
        "training": asdict(loop),
        "metrics": [asdict(metric) for metric in card.metrics],
        "recipe": dict(card.recipe),
    }
    (out / "report.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (out / "report.md").write_text(_markdown(card, loop, films), encoding="utf-8")


def _markdown(card: AdapterCard, loop: LoopReport, films: Mapping[str, int]) -> str:
    lines = [
        f"# {card.name}",
        "",
        f"{card.description}".strip(),
        "",
        f"Base {card.base.name}; films: {', '.join(f'{count} {split}' for split, count in films.items())}. "
        f"Best epoch {loop.best_epoch + 1} of {len(loop.history)} run, {loop.steps} steps, {loop.seconds:.0f} s. "
        f"Validation picked the epoch{'' if card.calibration.method == 'none' else ', and calibrated'}.",
        "",
        "| split | measure | label | value (95 %, by patient) | positives |",
        "|---|---|---|---|---|",
    ]
    for metric in card.metrics:
        bounds = "" if metric.low is None else f" ({metric.low:.3f} to {metric.high:.3f})"
        positives = "" if metric.positives is None else str(metric.positives)
        lines.append(f"| {metric.split} | {metric.name} | {metric.label} | {metric.value:.3f}{bounds} | {positives} |")
    lines += ["", *(f"- {limit}" for limit in card.limits)]
    return "\n".join(lines).rstrip() + "\n"


def _among_known(of: Callable[..., Floats], scores: Floats, truth: npt.NDArray[Any]) -> Statistic:
    """The statistic on the films whose truth is known; NaN where there is none."""
    known = ~np.isnan(truth)
    held = truth[known] > 0.5

    def statistic(weights: Floats) -> Floats:
        return of(scores[known], held, weights[:, known]) if known.any() else np.full(len(weights), np.nan)

    return statistic
