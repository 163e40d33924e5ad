"""The classification task: calibrated probabilities, thresholds, and the conformal set where the card has one."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.card import AdapterCard
from adapters.conformal import conformal_sets, left
from adapters.tasks.classification import ClassificationResult, Classifier
from serving.messages import Film, Request
from serving.residency import Resident
from serving.works.work import Seen, Tools, Value, View, assessment, film_of, further_views


@dataclass(frozen=True, eq=False)
class Classify:
    film: Film
    resident: Resident
    classifier: Classifier
    tools: Tools
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> Classify:
        resident = tools.adapter_of(request, pinned, "Classifying")
        return cls(film_of(request, tools), resident, resident.opened(Classifier), tools)

    @property
    def views(self) -> tuple[View, ...]:
        return (*self._as_it_is, *further_views(self.film.pixels, self.classifier.head.looks))

    @property
    def _as_it_is(self) -> tuple[View, ...]:
        return self.tools.views(self.film, self.resident)

    def finish(self, seen: Seen) -> Value:
        plain = len(self._as_it_is)
        verdict = self.tools.verdict(seen.features[plain - 1], self.film)
        card = self.classifier.card
        value: Value = {"labels": list(card.labels), "calibration": calibration_id(card), **assessment(verdict)}
        if not verdict.assessed:
            return {**value, "probabilities": [], "logits": [], "thresholds": [], "normal": None, "conformal": None}
        result = self.classifier(seen.features[0], seen.features[plain:])[0]
        return {
            **value,
            "probabilities": result.probabilities.tolist(),
            "logits": result.logits.tolist(),
            "thresholds": result.thresholds.tolist(),
            "normal": result.normal_probability,
            "conformal": conformal_set(card, result),
            "conformal_sets": conformal_verdicts(card, result),
        }


def calibration_id(card: AdapterCard) -> str | None:
    """How its probabilities were calibrated, and on what; None where they were not."""
    how = card.calibration
    return None if how.method == "none" else f"{how.method} on {how.films} films of '{how.split}'"


def conformal_verdicts(card: AdapterCard, result: ClassificationResult) -> Value | None:
    """What can be said of each label at the card's coverage; None where the card says nothing of it."""
    sets = conformal_sets(card.conformal, result.probabilities)
    return None if sets is None else {"coverage": card.conformal.coverage, "sets": list(sets)}


def conformal_set(card: AdapterCard, result: ClassificationResult) -> Value | None:
    """The labels that cannot be ruled out at the card's coverage; None where the card has no thresholds for it."""
    reaches = left(card.conformal, result.probabilities)
    if reaches is None:
        return None
    kept = [label for label, is_in in zip(result.labels, reaches, strict=True) if is_in]
    return {"coverage": card.conformal.coverage, "labels": kept}
