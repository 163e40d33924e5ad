"""POST /v1/anomaly: how strange films are among normal ones, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.schemas.common import ImageBody, Item
from serving.schemas.parsing import Answer


class AnomalyBody(ImageBody):
    """`model` names the adapter. heat false leaves the heat map out."""

    model: str
    heat: bool = True


class HeatPicture(Answer):
    """A 16-bit grey PNG in the film's own pixels, as a data URI; 0 stands for `low` and 65535 for `high`.

    Values are shares of the patches of normal films that are less strange.
    """

    png: str
    low: float
    high: float


class AnomalyItem(Item):
    """p_value: the share of `normals` held-out normal films that are at least as strange; score: 1 - p_value.

    branches: each branch's own p-value. All empty when the film was not assessed or failed.
    """

    score: float | None = None
    p_value: float | None = None
    branches: dict[str, float] = Field(default_factory=dict)
    normals: int = 0
    heat: HeatPicture | None = None


class AnomalyAnswer(Answer):
    object: Literal["anomaly"] = "anomaly"
    model: str
    data: list[AnomalyItem]
