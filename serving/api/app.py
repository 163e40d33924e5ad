"""The app: routes, guard, observer and error handlers put together over a Gateway.

It starts no process and opens no socket: `server.py` does, and hands in a `lifespan` that starts and stops
what stands behind the gateway.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from foundation.errors import VesaliusError
from serving.api import adapters, analyze, anomaly, chat, classify, embeddings, fuse, health, kept, models, segment, zero_shot
from serving.api.observer import Observer
from serving.api.routes import add_routes
from serving.api.service import Service
from serving.api.trail import Trail
from serving.auth import KeyGuard, operator_ring
from serving.gateway import Gateway
from serving.http_errors import on_http_exception, on_vesalius_error
from serving.keys import KeyRing
from serving.ledger import Ledger
from serving.limits import ServerLimits
from serving.schemas.adapters import LoadBody, VllmLoadBody, VllmUnloadBody
from serving.schemas.analyze import AnalyzeBody
from serving.schemas.anomaly import AnomalyBody
from serving.schemas.chat import ChatBody
from serving.schemas.classify import ClassifyBody
from serving.schemas.embeddings import EmbeddingsBody
from serving.schemas.fuse import FuseBody
from serving.schemas.segment import SegmentBody
from serving.schemas.zero_shot import HuggingFaceBody, ZeroShotBody

_BODIES = (
    ZeroShotBody,
    HuggingFaceBody,
    ClassifyBody,
    SegmentBody,
    AnomalyBody,
    FuseBody,
    AnalyzeBody,
    EmbeddingsBody,
    ChatBody,
    LoadBody,
    VllmLoadBody,
    VllmUnloadBody,
)
_ROUTES = (classify, zero_shot, embeddings, chat, analyze, segment, anomaly, fuse, models, adapters, kept, health)
"""They are looked through in this order."""


class VesaliusApp(FastAPI):
    """FastAPI whose OpenAPI document also holds the bodies that the routes read by themselves."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            _, bodies = models_json_schema(
                [(body, "validation") for body in _BODIES], ref_template="#/components/schemas/{model}"
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
            self.openapi_schema = document
        return self.openapi_schema


def create_app(
    gateway: Gateway,
    *,
    limits: ServerLimits | None = None,
    api_key: str | None = None,
    keys: KeyRing | None = None,
    trail: Trail | None = None,
    lifespan: Lifespan[Any] | None = None,
    ledger: Ledger | None = None,
) -> FastAPI:
    """The API over `gateway`. Without `api_key` or `keys` it answers only requests that name this machine.

    ledger: what this app counts together with others, where it is one of several fronts of a server.
    """
    service = Service(gateway, limits or ServerLimits(), ledger)
    app = VesaliusApp(
        title="Vesalius",
        summary="A medical vision-language service. Research use; not a medical device.",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.service = service
    for routes in _ROUTES:
        add_routes(app, routes.router)
    app.add_middleware(KeyGuard, ring=keys or operator_ring(api_key), rates=ledger.rates() if ledger else None)
    app.add_middleware(Observer, metrics=service.metrics, trail=trail or Trail(None))
    app.add_exception_handler(VesaliusError, on_vesalius_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    return app
