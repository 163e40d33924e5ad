"""POST /v1/zero_shot and its Hugging Face alias: films against the caller's own labels.

A request for one film fails as a whole; among several, each film carries its own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter
from starlette.responses import Response

from foundation.errors import InvalidRequest, VesaliusError
from serving.api.answers import documented, item, json_answer, while_connected
from serving.api.routes import routes
from serving.api.service import Asked, Service, service_of
from serving.gateway import ModelInfo
from serving.limits import ServerLimits, check_count, check_texts
from serving.schemas.common import FilmInput
from serving.schemas.parsing import parse_fields
from serving.schemas.zero_shot import (
    HuggingFaceBody,
    LabelScore,
    ZeroShotAnswer,
    ZeroShotBody,
    ZeroShotItem,
    ZeroShotScore,
)

router = routes("zero-shot")
_one_film = TypeAdapter(list[LabelScore])
_many_films = TypeAdapter(list[list[LabelScore]])
_PLAIN_TEMPLATES = ("{}",)


@router.post("/v1/zero_shot", **documented(ZeroShotBody, ZeroShotAnswer))
async def zero_shot(request: Request) -> Response:
    """Score films against labels of your own."""
    service = service_of(request)
    async with service.receive(request, ZeroShotBody) as body:
        answer = await while_connected(request, _answer(service, body))
    if body.format == "hf":
        return _hugging_face(answer, is_list=len(body.images) > 1)
    return json_answer(answer)


@router.post("/v1/zero_shot/hf", **documented(HuggingFaceBody, list[LabelScore] | list[list[LabelScore]]))
async def zero_shot_hugging_face(request: Request) -> Response:
    """The same in the shape of the Hugging Face zero-shot image pipeline: scores sum to one, best label first."""
    service = service_of(request)
    async with service.receive(request, HuggingFaceBody) as body:
        template = body.parameters.hypothesis_template
        plain = parse_fields(
            ZeroShotBody,
            {
                "model": body.model,
                "images": body.inputs,
                "labels": body.parameters.candidate_labels,
                "templates": None if template is None else [template],
            },
        )
        answer = await while_connected(request, _answer(service, plain))
    return _hugging_face(answer, is_list=body.is_list)


async def _answer(service: Service, body: ZeroShotBody) -> ZeroShotAnswer:
    model = service.model_for(body.model, "zero_shot")
    templates = templates_of(body, model)
    check(body, templates, service.limits)
    with service.items.take(len(body.images)):
        asked = await service.each(
            [_ask(service, body, model, templates, index, film) for index, film in enumerate(body.images)]
        )
    return ZeroShotAnswer(
        model=model.name,
        labels=body.labels,
        templates=templates,
        negatives=body.effective_negatives,
        scoring=body.effective_scoring,
        data=[scored(body.labels, index, one, body.include_film) for index, one in enumerate(asked)],
    )


def templates_of(body: ZeroShotBody, model: ModelInfo) -> list[str]:
    """The caller's, or those the model was trained with."""
    return body.templates or list(model.templates or _PLAIN_TEMPLATES)


def options_of(body: ZeroShotBody, templates: list[str]) -> dict[str, Any]:
    """What the engine is told; see `serving/messages.py`."""
    return {
        "labels": body.labels,
        "templates": templates,
        "negatives": body.effective_negatives,
        "scoring": body.effective_scoring,
    }


def check(body: ZeroShotBody, templates: Sequence[str], limits: ServerLimits) -> None:
    check_count("images", len(body.images), limits.max_images)
    check_count("labels", len(body.labels), limits.max_labels)
    check_count("templates", len(templates), limits.max_templates)
    check_texts("labels", body.labels, limits.max_text_chars)
    check_texts("templates", templates, limits.max_text_chars)
    check_texts("negatives", body.negatives or [], limits.max_text_chars)
    prompts = len(body.labels) * len(templates) * (2 if body.effective_negatives else 1)
    if prompts > limits.max_prompts:
        raise InvalidRequest(
            f"The labels and templates make {prompts} prompts; at most {limits.max_prompts} are taken at once.",
            param="labels",
        )


async def _ask(
    service: Service, body: ZeroShotBody, model: ModelInfo, templates: list[str], index: int, film: FilmInput
) -> Asked:
    decoded = await service.decode(film, f"images[{index}]", body)
    return await service.ask(service.request("zero_shot", model, film=decoded, options=options_of(body, templates)))


def scored(labels: Sequence[str], index: int, asked: Asked | VesaliusError, include_film: bool) -> ZeroShotItem:
    answer = item(ZeroShotItem, index, asked, include_film)
    if isinstance(asked, VesaliusError) or not answer.assessed:
        return answer
    scores = zip(labels, asked.value["scores"], asked.value["logits"], strict=True)
    answer.scores = [ZeroShotScore(label=label, score=score, logit=logit) for label, score, logit in scores]
    answer.calibration = asked.value.get("calibration")
    return answer


def _hugging_face(answer: ZeroShotAnswer, *, is_list: bool) -> Response:
    """The pipeline's shape has no room for an item's error, nor for "not assessed": either refuses the whole."""
    for found in answer.data:
        if found.error is not None or not found.assessed:
            reason = found.error.message if found.error else f"It was not assessed: it looks like {found.looks_like}."
            raise InvalidRequest(f"Film {found.index} has no scores. {reason}", param=f"inputs[{found.index}]")
    ranked = [
        [LabelScore(label=one.label, score=one.score) for one in sorted(found.scores, key=lambda score: -score.score)]
        for found in answer.data
    ]
    content = _many_films.dump_json(ranked) if is_list else _one_film.dump_json(ranked[0])
    return Response(content, media_type="application/json")
