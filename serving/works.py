"""Works: what each operation needs of the trunk and the text tower, and what it makes of what they saw.

    Request --plan--> Work(views, texts) --one trunk forward for all works of a batch--> Seen --finish--> value

A View is a film through one adapter (or none); the engine runs equal views once. A work knows nothing of its
neighbours in the batch. Adding an operation is adding a class here and a line in `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from adapters.card import AdapterCard
from adapters.conformal import conformal_sets
from foundation.errors import InvalidRequest
from foundation.gate import Gate, GateVerdict, gate_vectors
from serving.evidence import Finding
from serving.messages import Film, Request
from serving.prompts import SCORED_FINDINGS
from serving.residency import Residency, Resident
from serving.zero_shot import PromptSet, score

if TYPE_CHECKING:
    from foundation.backbone import Backbone, ImageFeatures

Value = dict[str, Any]


@dataclass(frozen=True, eq=False)
class View:
    """A film, pixels (S, S, 3), as seen through an adapter; None is the base itself."""

    pixels: npt.NDArray[np.uint8]
    resident: Resident | None = None

    @property
    def slot(self) -> int:
        return self.resident.slot if self.resident else 0


@dataclass(frozen=True, eq=False)
class Seen:
    """The answers to a work's views and texts, in their order. texts: (T, E)."""

    features: tuple[ImageFeatures, ...]  # each of one film (B = 1)
    texts: Tensor


class Work(Protocol):
    @property
    def views(self) -> tuple[View, ...]: ...

    @property
    def texts(self) -> tuple[str, ...]: ...

    @property
    def resident(self) -> Resident | None: ...  # whose adapter the answer rests on

    def finish(self, seen: Seen) -> Value: ...


@dataclass(frozen=True, eq=False)
class Tools:
    """What plans are made with: the opened model and what is resident on it."""

    backbone: Backbone
    residency: Residency
    gate: Gate | None
    findings_adapter: str

    def verdict(self, features: ImageFeatures, film: Film) -> GateVerdict:
        """Whether this film is of a kind the model knows; without a gate every film is. features: of the base."""
        if self.gate is None:
            return GateVerdict(True, "", 0.0)
        return self.gate.assess(gate_vectors(features)[0], film.pixels, film.modality)

    def findings(self, pinned: set[str]) -> FindingsReader:
        """The findings adapter where there is one for this base, else zero-shot; pinned: as for `plan`."""
        if not self.residency.has(self.findings_adapter):
            return TextFindings(self.backbone)
        resident = self.residency.take(self.findings_adapter, pinned)
        pinned.add(resident.digest)
        return AdapterFindings(resident)


def plan(request: Request, tools: Tools, pinned: set[str]) -> Work:
    """The work of a request that does not generate. pinned: digests of adapters this batch uses, added to."""
    if request.adapter is not None and request.operation != "classify":
        raise InvalidRequest(f"The adapter {request.adapter!r} is for classifying only.", param="model")
    if request.operation == "embed_text":
        return EmbedText(request.texts, tools.backbone)
    if request.operation == "embed_image":
        return EmbedImage(film_of(request, tools))
    if request.operation == "zero_shot":
        return ZeroShot.of(request, tools)
    if request.operation == "classify":
        return Classify.of(request, tools, pinned)
    raise InvalidRequest(f"The operation {request.operation!r} is not known here.", param="operation")


def film_of(request: Request, tools: Tools) -> Film:
    """The request's film, of the size the model eats."""
    size = tools.backbone.contract.size
    if request.film is None:
        raise InvalidRequest("This operation needs a film. Send one.", param="images")
    if request.film.pixels.shape != (size, size, 3):
        raise InvalidRequest(f"The film must be {size} x {size} pixels in three channels by now.", param="images")
    return request.film


@dataclass(frozen=True, eq=False)
class EmbedImage:
    film: Film
    texts: tuple[str, ...] = ()
    resident: None = None

    @property
    def views(self) -> tuple[View, ...]:
        return (View(self.film.pixels),)

    def finish(self, seen: Seen) -> Value:
        return {"embeddings": seen.features[0].embedding.float().tolist()}


@dataclass(frozen=True, eq=False)
class EmbedText:
    texts: tuple[str, ...]
    backbone: Backbone
    views: tuple[View, ...] = ()
    resident: None = None

    def finish(self, seen: Seen) -> Value:
        return {"embeddings": seen.texts.tolist(), "prompt_tokens": self._count_tokens()}

    def _count_tokens(self) -> int:
        inner: Any = getattr(self.backbone.tokenizer, "tokenizer", None)
        padding = getattr(inner, "pad_token_id", None) or 0
        return int((self.backbone.tokenizer(list(self.texts)) != padding).sum())


@dataclass(frozen=True, eq=False)
class ZeroShot:
    film: Film
    prompts: PromptSet
    scoring: str
    tools: Tools
    resident: None = None

    @classmethod
    def of(cls, request: Request, tools: Tools) -> ZeroShot:
        options: Mapping[str, Any] = request.options
        scoring = str(options.get("scoring") or "softmax")
        prompts = PromptSet.from_labels(
            list(options.get("labels") or []), list(options.get("templates") or []), options.get("negatives"), scoring
        )
        return cls(film_of(request, tools), prompts, scoring, tools)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(self.film.pixels),)

    @property
    def texts(self) -> tuple[str, ...]:
        return self.prompts.texts

    def finish(self, seen: Seen) -> Value:
        verdict = self.tools.verdict(seen.features[0], self.film)
        value: Value = {"scores": [], "logits": [], "calibration": None, **assessment(verdict)}
        if verdict.assessed:
            backbone = self.tools.backbone
            embedding = seen.features[0].embedding[0].float()
            scale, bias = backbone.logit_scale, backbone.logit_bias
            value["scores"], value["logits"] = score(embedding, self.prompts, seen.texts, scale, bias, self.scoring)
        return value


@dataclass(frozen=True, eq=False)
class Classify:
    """Through the adapter, and through the base for the gate, which knows films as the base sees them."""

    film: Film
    resident: Resident
    tools: Tools
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> Classify:
        if request.adapter is None:
            raise InvalidRequest("Classifying needs an adapter: name one in 'model'.", param="model")
        resident = tools.residency.take(request.adapter, pinned)
        pinned.add(resident.digest)
        return cls(film_of(request, tools), resident, tools)

    @property
    def views(self) -> tuple[View, ...]:
        through = View(self.film.pixels, self.resident)
        return (through, View(self.film.pixels)) if self.tools.gate else (through,)

    def finish(self, seen: Seen) -> Value:
        verdict = self.tools.verdict(seen.features[-1], self.film)
        value: Value = {"labels": list(self.resident.classifier.card.labels), **assessment(verdict)}
        if not verdict.assessed:
            return {**value, "probabilities": [], "logits": [], "thresholds": []}
        result = self.resident.classifier(seen.features[0])[0]
        return {
            **value,
            "probabilities": result.probabilities.tolist(),
            "logits": result.logits.tolist(),
            "thresholds": result.thresholds.tolist(),
            "conformal_sets": _conformal(self.resident.classifier.card, result.probabilities),
        }


class FindingsReader(Protocol):
    """Where a chat's findings come from: a view through `resident`, and the embedded `prompts` of all labels."""

    @property
    def resident(self) -> Resident | None: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def read(self, features: ImageFeatures, prompts: PromptSet, texts: Tensor) -> tuple[Finding, ...]: ...


@dataclass(frozen=True, eq=False)
class AdapterFindings:
    """Calibrated probabilities of a findings adapter."""

    resident: Resident

    @property
    def labels(self) -> tuple[str, ...]:
        return self.resident.classifier.card.labels

    def read(self, features: ImageFeatures, prompts: PromptSet, texts: Tensor) -> tuple[Finding, ...]:
        found = self.resident.classifier(features)[0]
        rows = zip(found.labels, found.probabilities.tolist(), found.thresholds.tolist(), strict=True)
        return tuple(Finding(label, probability, threshold) for label, probability, threshold in rows)


@dataclass(frozen=True, eq=False)
class TextFindings:
    """Without an adapter: each finding against its denial, zero-shot. Not calibrated; the threshold is one half."""

    backbone: Backbone
    resident: None = None
    labels: tuple[str, ...] = SCORED_FINDINGS

    def read(self, features: ImageFeatures, prompts: PromptSet, texts: Tensor) -> tuple[Finding, ...]:
        embedding = features.embedding[0].float()
        scores, _ = score(embedding, prompts, texts, self.backbone.logit_scale, 0.0, "pairwise")
        return tuple(Finding(label, value, 0.5) for label, value in zip(self.labels, scores, strict=True))


def _conformal(card: AdapterCard, probabilities: npt.NDArray[np.float64]) -> Value | None:
    """What can be said of each label at the card's coverage; None where the card says nothing of it."""
    sets = conformal_sets(card.conformal, probabilities)
    return None if sets is None else {"coverage": card.conformal.coverage, "sets": list(sets)}


def assessment(verdict: GateVerdict) -> Value:
    return {"assessed": verdict.assessed, "looks_like": verdict.looks_like}
