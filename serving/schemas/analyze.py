"""POST /v1/analyze: one film, many tasks in one call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serving.schemas.anomaly import AnomalyItem
from serving.schemas.classify import ClassifyItem
from serving.schemas.common import ErrorReport, FilmReport, ImageBody, Provenance, Strings, Timings
from serving.schemas.parsing import Answer, Body
from serving.schemas.segment import Boxes, MaskFormat, Points, SegmentItem
from serving.schemas.zero_shot import Scoring, ZeroShotItem


class AnalyzeTask(Body):
    """One task. An adapter in `model` says by itself what is done; without one it is zero-shot against `labels`.

    The fields are those of the task's own route, and mean the same.
    """

    model: str | None = None
    labels: Strings | None = None
    templates: Strings | None = None
    negatives: Strings | None = None
    scoring: Scoring | None = None
    points: Points = Field(default_factory=list)
    boxes: Boxes = Field(default_factory=list)
    mask_format: MaskFormat = "rle"
    heat: bool = True


def _as_tasks(value: Any) -> Any:
    value = [value] if isinstance(value, (str, dict)) else value
    return [{"model": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value


class AnalyzeBody(ImageBody):
    """`images` holds the one film; a plain string among `tasks` is an adapter's name."""

    tasks: Annotated[list[AnalyzeTask], BeforeValidator(_as_tasks)] = Field(min_length=1)


class AnalyzeResult(Answer):
    """One task's answer in the shape of its own route, under the field of that route's name; or its error."""

    index: int
    model: str
    task: str = ""
    error: ErrorReport | None = None
    provenance: Provenance | None = None
    zero_shot: ZeroShotItem | None = None
    classify: ClassifyItem | None = None
    segment: SegmentItem | None = None
    anomaly: AnomalyItem | None = None


class AnalyzeAnswer(Answer):
    """One film, decoded, gated and looked at once. `data` in the order of the tasks."""

    object: Literal["analysis"] = "analysis"
    assessed: bool = True
    looks_like: str = ""
    film: FilmReport | None = None
    provenance: Provenance | None = None
    timings: Timings | None = None
    data: list[AnalyzeResult]
