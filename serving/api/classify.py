"""POST /v1/classify: films through a classification adapter. Errors are per film, as in `zero_shot.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import Request
from starlette.responses import Response

from foundation.errors import VesaliusError
from serving.api.answers import documented, item, json_answer, while_connected
from serving.api.routes import routes
from serving.api.service import Asked, Service, service_of
from serving.gateway import ModelInfo
from serving.limits import check_count
from serving.schemas.classify import (
    ClassifyAnswer,
    ClassifyBody,
    ClassifyItem,
    ConformalSet,
    ConformalVerdict,
    LabelProbability,
)
from serving.schemas.common import FilmInput

router = routes("adapters")


@router.post("/v1/classify", **documented(ClassifyBody, ClassifyAnswer))
async def classify(request: Request) -> Response:
    """The findings of a classification adapter, with calibrated probabilities and thresholds."""
    service = service_of(request)
    async with service.receive(request, ClassifyBody) as body:
        return json_answer(await while_connected(request, _answer(service, body)))


async def _answer(service: Service, body: ClassifyBody) -> ClassifyAnswer:
    model = service.model_for(body.model, "classify")
    check_count("images", len(body.images), service.limits.max_images)
    with service.items.take(len(body.images)):
        asked = await service.each([_ask(service, body, model, i, film) for i, film in enumerate(body.images)])
    return ClassifyAnswer(model=model.name, data=[classified(index, one, body.include_film) for index, one in enumerate(asked)])


async def _ask(service: Service, body: ClassifyBody, model: ModelInfo, index: int, film: FilmInput) -> Asked:
    decoded = await service.decode(film, f"images[{index}]", body)
    return await service.ask(service.request("classify", model, film=decoded))


def classified(index: int, asked: Asked | VesaliusError, include_film: bool) -> ClassifyItem:
    answer = item(ClassifyItem, index, asked, include_film)
    if not isinstance(asked, VesaliusError) and answer.assessed:
        answer.labels = list(_probabilities(asked.value))
        answer.calibration = asked.value.get("calibration")
        answer.normal = asked.value.get("normal")
        conformal = asked.value.get("conformal")
        answer.conformal = None if conformal is None else ConformalSet.model_validate(conformal)
    return answer


def _probabilities(value: Mapping[str, Any]) -> Iterator[LabelProbability]:
    labels = value["labels"]
    thresholds = value.get("thresholds") or [None] * len(labels)
    sets = _conformal(value) or [None] * len(labels)
    rows = zip(labels, value["probabilities"], value["logits"], thresholds, sets, strict=True)
    for label, probability, logit, threshold, conformal in rows:
        yield LabelProbability(
            label=label,
            probability=probability,
            logit=logit,
            threshold=threshold,
            positive=None if threshold is None else probability >= threshold,
            conformal=conformal,
        )


def _conformal(value: Mapping[str, Any]) -> list[ConformalVerdict | None] | None:
    found = value.get("conformal_sets")
    return None if found is None else [ConformalVerdict(coverage=found["coverage"], set=one) for one in found["sets"]]
