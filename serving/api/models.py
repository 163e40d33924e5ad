"""GET /v1/models: the base model and its adapters, what each can do; never where it lies."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from serving.api.answers import json_answer
from serving.api.routes import routes
from serving.api.service import service_of
from serving.http_errors import ModelNotFound
from serving.schemas.models import Model, ModelList

router = routes("models")


@router.get("/v1/models", response_model=ModelList)
async def list_models(request: Request) -> Response:
    """The base model first, then the adapters."""
    return json_answer(ModelList(data=[Model.from_info(info) for info in service_of(request).gateway.models()]))


@router.get("/v1/models/{model_id:path}", response_model=Model)
async def get_model(request: Request, model_id: str) -> Response:
    for info in service_of(request).gateway.models():
        if info.name == model_id:
            return json_answer(Model.from_info(info))
    raise ModelNotFound(f"There is no model '{model_id[:100]}' here. GET /v1/models lists what there is.", param="model")
