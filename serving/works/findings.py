"""Where a chat's findings come from: the findings adapter, or zero-shot where the base has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from adapters.tasks import classification
from adapters.tasks.classification import Classifier
from foundation.look import Look
from serving.evidence import Finding
from serving.prompts import SCORED_FINDINGS
from serving.residency import Resident
from serving.works.work import Tools
from serving.zero_shot import PromptSet, score

if TYPE_CHECKING:
    from foundation.backbone import Backbone, ImageFeatures


class FindingsReader(Protocol):
    """A view through `resident`, and the embedded `prompts` of all labels."""

    @property
    def resident(self) -> Resident | None: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def looks(self) -> tuple[Look, ...]: ...  # that the base takes at the film besides

    def read(
        self, features: ImageFeatures, further: Sequence[ImageFeatures], prompts: PromptSet, texts: Tensor
    ) -> tuple[Finding, ...]: ...


def findings_reader(tools: Tools, pinned: set[str]) -> FindingsReader:
    """The findings adapter where there is one for this base, else zero-shot; pinned: as for `plan`."""
    if not tools.residency.has(tools.findings_adapter, classification.TASK):
        return TextFindings(tools.backbone)
    resident = tools.residency.take(tools.findings_adapter, pinned)
    pinned.add(resident.digest)
    return AdapterFindings(resident, resident.opened(Classifier))


@dataclass(frozen=True, eq=False)
class AdapterFindings:
    """Calibrated probabilities of a findings adapter."""

    resident: Resident
    classifier: Classifier

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.card.labels

    @property
    def looks(self) -> tuple[Look, ...]:
        return self.classifier.head.looks

    def read(
        self, features: ImageFeatures, further: Sequence[ImageFeatures], prompts: PromptSet, texts: Tensor
    ) -> tuple[Finding, ...]:
        found = self.classifier(features, further)[0]
        rows = zip(found.labels, found.probabilities.tolist(), found.thresholds.tolist(), strict=True)
        return tuple(Finding(label, probability, threshold) for label, probability, threshold in rows)


@dataclass(frozen=True, eq=False)
class TextFindings:
    """Without an adapter: each finding against its denial, zero-shot. Not calibrated; the threshold is one half."""

    backbone: Backbone
    resident: None = None
    labels: tuple[str, ...] = SCORED_FINDINGS
    looks: tuple[Look, ...] = ()

    def read(
        self, features: ImageFeatures, further: Sequence[ImageFeatures], prompts: PromptSet, texts: Tensor
    ) -> tuple[Finding, ...]:
        embedding = features.embedding[0].float()
        scores, _ = score(embedding, prompts, texts, self.backbone.logit_scale, 0.0, "pairwise")
        return tuple(Finding(label, value, 0.5) for label, value in zip(self.labels, scores, strict=True))
