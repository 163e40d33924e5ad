"""Is the process there (/healthz), does the engine answer (/readyz), what has been counted (/metrics)."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from serving.api.answers import json_answer
from serving.api.routes import routes
from serving.api.service import service_of
from serving.schemas.models import FrontHealth, Health, ReadinessAnswer

router = routes("health")


@router.get("/healthz", response_model=Health | FrontHealth)
async def healthz(request: Request) -> Response:
    """The process is there; says nothing of the model."""
    front = service_of(request).front
    return json_answer(FrontHealth(worker=front) if front else Health())


@router.get("/readyz", response_model=ReadinessAnswer, responses={503: {"model": ReadinessAnswer}})
async def readyz(request: Request) -> Response:
    """200 when answers can be expected, 503 when not, with the age of the last successful forward."""
    found = service_of(request).gateway.readiness()
    response = json_answer(
        ReadinessAnswer(
            ready=found.ready,
            last_forward_age_s=found.last_forward_age_s,
            queue_length=found.queue_length,
            reason=found.reason,
        )
    )
    response.status_code = 200 if found.ready else 503
    return response


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and histograms in Prometheus's text format."""
    service = service_of(request)
    return Response(service.metrics.render(service.gateway.readiness()), headers={"Content-Type": service.metrics.content_type})
