"""Zero-shot arithmetic: a film's embedding against sentences.

positives (K, E)   each label's prompts, averaged and brought back to length one; negatives likewise
softmax            labels compete:  softmax over K of scale * similarity
sigmoid            each by itself:  sigmoid(scale * similarity + bias), the model's own scale and bias
pairwise           each against its negative:  sigmoid(scale * (similarity to positive - similarity to negative)),
                   which is the softmax over the pair
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.errors import InvalidRequest

Scoring = Literal["softmax", "sigmoid", "pairwise"]
SCORINGS = ("softmax", "sigmoid", "pairwise")


@dataclass(frozen=True)
class PromptSet:
    """For each label its positive prompts and, for pairwise scoring, its negative ones."""

    positive: tuple[tuple[str, ...], ...]
    negative: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def from_labels(cls, labels: list[str], templates: list[str], negatives: list[str] | None, scoring: str) -> PromptSet:
        """Every label (and negative) in every template. Raises InvalidRequest naming what does not fit."""
        if scoring not in SCORINGS:
            raise InvalidRequest(f"scoring is {scoring!r}; use one of {', '.join(SCORINGS)}.", param="scoring")
        if not labels or not templates:
            raise InvalidRequest("Zero-shot needs at least one label and one template.", param="labels")
        if any(template.count("{}") != 1 for template in templates):
            raise InvalidRequest("Each template must hold '{}' once, where the label goes.", param="templates")
        if scoring != "pairwise":
            return cls(_fill(labels, templates))
        against = negatives or [f"no {label}" for label in labels]
        if len(against) != len(labels):
            raise InvalidRequest("'negatives' needs one entry for each label.", param="negatives")
        return cls(_fill(labels, templates), _fill(against, templates))

    @property
    def texts(self) -> tuple[str, ...]:
        """All prompts in the order `vectors` reads them."""
        return tuple(text for group in (*self.positive, *self.negative) for text in group)

    def vectors(self, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
        """embeddings of `texts` (T, E) -> positives (K, E) and, where there are any, negatives (K, E)."""
        sizes = [len(group) for group in (*self.positive, *self.negative)]
        is_plain = len(sizes) == len(embeddings)  # each prompt stands for itself
        means = embeddings if is_plain else torch.stack([part.mean(dim=0) for part in embeddings.split(sizes)])
        means = F.normalize(means, dim=1)
        count = len(self.positive)
        return means[:count], means[count:] if self.negative else None


def score(
    embedding: Tensor, prompts: PromptSet, texts: Tensor, scale: float, bias: float, scoring: str
) -> tuple[list[float], list[float]]:
    """embedding (E,), texts (T, E) -> scores and logits, K of each."""
    positives, negatives = prompts.vectors(texts)
    logits = (scale * (positives @ embedding)).double()
    if negatives is not None:
        logits = logits - (scale * (negatives @ embedding)).double()
        return torch.sigmoid(logits).tolist(), logits.tolist()
    logits = logits + bias
    scores = torch.sigmoid(logits) if scoring == "sigmoid" else torch.softmax(logits, dim=0)
    return scores.tolist(), logits.tolist()


def _fill(labels: list[str], templates: list[str]) -> tuple[tuple[str, ...], ...]:
    # NOTE: not str.format, which would read braces in a caller's label as fields
    return tuple(tuple(template.replace("{}", label) for template in templates) for label in labels)
