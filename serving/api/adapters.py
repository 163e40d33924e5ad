"""Loading and unloading adapters while the server runs: POST and DELETE /v1/adapters/{name}, and vLLM's two addresses.

Only what lies in the store can be loaded, by its name. Nothing pauses: who asked before is answered by what was there then.
"""

from __future__ import annotations

from fastapi import Request
from starlette.responses import PlainTextResponse, Response

from adapters.card import check_name
from foundation.errors import InvalidRequest
from serving.api.answers import documented, json_answer, while_connected
from serving.api.routes import routes
from serving.api.service import Service, service_of
from serving.call import current_call
from serving.schemas.adapters import LoadAnswer, LoadBody, UnloadAnswer, VllmLoadBody, VllmUnloadBody

router = routes("adapters")


@router.post("/v1/adapters/{name}", **documented(LoadBody, LoadAnswer, may_be_empty=True))
async def load(request: Request, name: str) -> Response:
    """Load what the store holds under this name, or put it in the place of what is loaded; it is tried first."""
    service = service_of(request)
    async with service.receive(request, LoadBody, may_be_empty=True) as body:
        return json_answer(await while_connected(request, _load(service, name, body.digest or "")))


@router.delete("/v1/adapters/{name}", response_model=UnloadAnswer)
async def unload(request: Request, name: str) -> Response:
    """Answer no more for this name, and free its memory. The store keeps the files."""
    return json_answer(await while_connected(request, _unload(service_of(request), name)))


@router.post("/v1/load_lora_adapter", **documented(VllmLoadBody, str))
async def load_as_vllm(request: Request) -> Response:
    """The same in vLLM's shape."""
    service = service_of(request)
    async with service.receive(request, VllmLoadBody) as body:
        if body.lora_path != body.lora_name:
            raise InvalidRequest(
                "'lora_path' must be the name of an adapter in this server's store, and the same as 'lora_name': an adapter is "
                "served under its own name, and no path is read.",
                param="lora_path",
            )
        await while_connected(request, _load(service, body.lora_name, "", "lora_name"))
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", **documented(VllmUnloadBody, str))
async def unload_as_vllm(request: Request) -> Response:
    """The same in vLLM's shape."""
    service = service_of(request)
    async with service.receive(request, VllmUnloadBody) as body:
        await while_connected(request, _unload(service, body.lora_name, "lora_name"))
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def _load(service: Service, name: str, digest: str, param: str = "name") -> LoadAnswer:
    current_call().note("load", _checked(name, param))
    return LoadAnswer.model_validate(await service.load(name, digest))


async def _unload(service: Service, name: str, param: str = "name") -> UnloadAnswer:
    current_call().note("unload", _checked(name, param))
    return UnloadAnswer.model_validate(await service.unload(name))


def _checked(name: str, param: str) -> str:
    try:
        return check_name(name)
    except InvalidRequest:
        raise InvalidRequest(
            "That is not an adapter's name: 1 to 63 of a-z, 0-9, '-' and '_'. No path is read; add the folder to the store "
            "with `vesalius adapters add FOLDER` and load it by its name.",
            param=param,
        ) from None
