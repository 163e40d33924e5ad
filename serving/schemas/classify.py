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
    """What can be said of a label so that a share of `coverage`, of films with it and of films without, is not told wrongly."""

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


class ClassifyItem(Item):
    """`labels` in the adapter's order; empty when the film was not assessed or failed."""

    labels: list[LabelProbability] = Field(default_factory=list)
    calibration: str | None = None


class ClassifyAnswer(Answer):
    object: Literal["classification"] = "classification"
    model: str
    data: list[ClassifyItem]
