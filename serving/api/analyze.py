"""POST /v1/analyze: one film, many tasks. Decoded once, judged by the gate once, looked at once below the adapters' first
blocks; each task's answer, or its error, in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from foundation.errors import InvalidRequest, VesaliusError
from foundation.preprocess import InputContract
from serving.api import anomaly, classify, segment, zero_shot
from serving.api.answers import documented, film_report, json_answer, while_connected
from serving.api.routes import routes
from serving.api.service import Asked, Service, service_of
from serving.gateway import ModelInfo
from serving.http_errors import error_from
from serving.limits import check_count, check_texts
from serving.messages import Operation
from serving.schemas.analyze import AnalyzeAnswer, AnalyzeBody, AnalyzeResult, AnalyzeTask
from serving.schemas.common import ErrorReport, Provenance
from serving.schemas.zero_shot import ZeroShotBody

router = routes("adapters")
OF_ADAPTERS: tuple[Operation, ...] = ("classify", "segment", "anomaly")
Planned = tuple[Operation, ModelInfo, dict[str, Any]]


@router.post("/v1/analyze", **documented(AnalyzeBody, AnalyzeAnswer))
async def analyze(request: Request) -> Response:
    """Ask one film many things at once: adapters by name, and labels of your own."""
    service = service_of(request)
    async with service.receive(request, AnalyzeBody) as body:
        return json_answer(await while_connected(request, _answer(service, body)))


async def _answer(service: Service, body: AnalyzeBody) -> AnalyzeAnswer:
    check_count("images", len(body.images), 1)
    check_count("tasks", len(body.tasks), service.limits.max_tasks)
    planned = [_planned(service, f"tasks[{index}]", task) for index, task in enumerate(body.tasks)]
    runnable = [one for one in planned if not isinstance(one, VesaliusError)]
    if not runnable:
        raise next(one for one in planned if isinstance(one, VesaliusError))
    base = service.model_for(None, "embed_image")
    with service.items.take(len(body.tasks)):
        film = await service.decode(body.images[0], "images[0]", body)
        tasks = [
            {"operation": operation, "adapter": model.name, "digest": model.digest, "options": options}
            if model.kind == "adapter"
            else {"operation": operation, "adapter": None, "options": options}
            for operation, model, options in runnable
        ]
        asked = await service.ask(service.request("analyze", base, film=film, options={"tasks": tasks}))
    parts = iter(asked.value["parts"])
    settled = [one if isinstance(one, VesaliusError) else _part(service, asked, next(parts)) for one in planned]
    return AnalyzeAnswer(
        assessed=bool(asked.value.get("assessed", True)),
        looks_like=str(asked.value.get("looks_like", "")),
        film=film_report(asked.film, body.include_film),
        provenance=Provenance.from_value(asked.value),
        timings=asked.timings,
        data=[
            await _result(index, task, plan, one, base.contract)
            for index, (task, plan, one) in enumerate(zip(body.tasks, planned, settled, strict=True))
        ],
    )


def _planned(service: Service, name: str, task: AnalyzeTask) -> Planned | VesaliusError:
    """What one task asks of whom; its error where it cannot be asked."""
    try:
        model = service.model_named(task.model)
        if model.kind == "base":
            return "zero_shot", model, _zero_shot(service, task, model)
        operation = next((one for one in OF_ADAPTERS if one in model.capabilities), None)
        if operation is None:
            raise InvalidRequest(f"The adapter '{model.name}' cannot be part of an analysis.", param="model")
        if operation != "segment":
            return operation, model, {"heat": task.heat} if operation == "anomaly" else {}
        check_count("points", len(task.points), service.limits.max_marks, least=0)
        check_count("boxes", len(task.boxes), service.limits.max_marks, least=0)
        return operation, model, segment.options_of(task.labels, task.points, task.boxes)
    except VesaliusError as error:
        error.param = f"{name}.{error.param}" if error.param else name
        service.count_error(error.code)
        return error


def _zero_shot(service: Service, task: AnalyzeTask, model: ModelInfo) -> dict[str, Any]:
    if not task.labels:
        raise InvalidRequest("A task needs an adapter in 'model', or 'labels' to be scored against.", param="labels")
    given = {name: getattr(task, name) for name in ("labels", "templates", "negatives", "scoring")}
    try:
        body = ZeroShotBody(images=[{"data": ""}], **given)  # type: ignore[list-item]
    except ValueError:
        raise InvalidRequest(
            "The task's labels, templates, negatives and scoring do not fit together; POST /v1/zero_shot says how they must.",
            param="labels",
        ) from None
    templates = zero_shot.templates_of(body, model)
    zero_shot.check(body, templates, service.limits)
    check_texts("templates", templates, service.limits.max_text_chars)
    return zero_shot.options_of(body, templates)


def _part(service: Service, asked: Asked, part: Mapping[str, Any]) -> Asked | VesaliusError:
    """One task's own value, with what made it."""
    if "error" in part:
        code, message = part["error"]
        service.count_error(code)
        return error_from(code, message)
    provenance = {**asked.value.get("provenance", {}), "adapter": part.get("adapter")}
    return replace(asked, value={**part, "provenance": provenance}, film=asked.film)


async def _result(
    index: int,
    task: AnalyzeTask,
    plan: Planned | VesaliusError,
    asked: Asked | VesaliusError,
    contract: InputContract | None,
) -> AnalyzeResult:
    if isinstance(plan, VesaliusError):
        return AnalyzeResult(index=index, model=task.model or "", error=ErrorReport.from_error(plan))
    operation, model, options = plan
    result = AnalyzeResult(index=index, model=model.name, task=model.task or operation)
    if isinstance(asked, VesaliusError):
        result.error = ErrorReport.from_error(asked)
        return result
    result.provenance = Provenance.from_value(asked.value)
    bare = replace(asked, film=None)  # the film is told once, for all
    if operation == "zero_shot":
        result.zero_shot = zero_shot.scored(options["labels"], index, bare, False)
    elif operation == "classify":
        result.classify = classify.classified(index, bare, False)
    elif operation == "segment":
        result.segment = await segment.segmented(index, asked, False, task.mask_format)
        result.segment.film = None
    elif operation == "anomaly":
        result.anomaly = await anomaly.judged(index, asked, False, contract if task.heat else None)
        result.anomaly.film = None
    return result
