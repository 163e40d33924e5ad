"""POST /v1/classify: films through a classification adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.schemas.common import ImageBody, Item
from serving.schemas.parsing import Answer


class ClassifyBody(ImageBody):
    """`model` names the adapter, as GET /v1/models lists it."""

    model: str


class ConformalVerdict(Answer):
    """What can be said of a label so that of patients with it, and of patients without, `coverage` are not told wrongly."""

    coverage: float
    set: Literal["present", "absent", "uncertain"]


class LabelProbability(Answer):
    """`positive` says whether the probability reaches the adapter's threshold for this label.

    conformal: None where the adapter's card holds no conformal thresholds.
    """

    label: str
    probability: float
    logit: float
    threshold: float | None = None
    positive: bool | None = None
    conformal: ConformalVerdict | None = None


class ConformalSet(Answer):
    """The labels that cannot be ruled out: each true label is among them with the stated coverage."""

    coverage: float
    labels: list[str]


class ClassifyItem(Item):
    """`labels` in the adapter's order; empty when the film was not assessed or failed.

    calibration: how the probabilities were calibrated, and on what. normal: that none of the findings is present, were they
    independent given the film. conformal: null where the adapter's card has no thresholds for it.
    """

    labels: list[LabelProbability] = Field(default_factory=list)
    calibration: str | None = None
    normal: float | None = None
    conformal: ConformalSet | None = None


class ClassifyAnswer(Answer):
    object: Literal["classification"] = "classification"
    model: str
    data: list[ClassifyItem]
