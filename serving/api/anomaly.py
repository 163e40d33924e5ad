"""POST /v1/anomaly: how strange films are among normal ones, with a heat map. Errors are per film, as in `zero_shot.py`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence

import numpy as np
from fastapi import Request
from starlette.responses import Response

from adapters.tasks.heat import heat_png
from foundation.errors import VesaliusError
from foundation.preprocess import InputContract, to_film
from serving.api.answers import documented, item, json_answer, while_connected
from serving.api.routes import routes
from serving.api.service import Asked, Service, service_of
from serving.gateway import ModelInfo
from serving.limits import check_count
from serving.schemas.anomaly import AnomalyAnswer, AnomalyBody, AnomalyItem, HeatPicture
from serving.schemas.common import FilmInput

router = routes("adapters")


@router.post("/v1/anomaly", **documented(AnomalyBody, AnomalyAnswer))
async def anomaly(request: Request) -> Response:
    """A p-value among normal films, each branch's own, and where the film is strange."""
    service = service_of(request)
    async with service.receive(request, AnomalyBody) as body:
        return json_answer(await while_connected(request, _answer(service, body)))


async def _answer(service: Service, body: AnomalyBody) -> AnomalyAnswer:
    model = service.model_for(body.model, "anomaly")
    check_count("images", len(body.images), service.limits.max_images)
    with service.items.take(len(body.images)):
        asked = await service.each([_ask(service, body, model, i, film) for i, film in enumerate(body.images)])
    contract = service.model_named(None).contract if body.heat else None
    data = [await judged(index, one, body.include_film, contract) for index, one in enumerate(asked)]
    return AnomalyAnswer(model=model.name, data=data)


async def _ask(service: Service, body: AnomalyBody, model: ModelInfo, index: int, film: FilmInput) -> Asked:
    decoded = await service.decode(film, f"images[{index}]", body)
    return await service.ask(service.request("anomaly", model, film=decoded, options={"heat": body.heat}))


async def judged(index: int, asked: Asked | VesaliusError, include_film: bool, contract: InputContract | None) -> AnomalyItem:
    """contract: how the film was laid into the model's square; None leaves the heat map out."""
    answer = item(AnomalyItem, index, asked, include_film)
    if isinstance(asked, VesaliusError) or not answer.assessed:
        return answer
    value = asked.value
    answer.score, answer.p_value = value["score"], value["p_value"]
    answer.branches, answer.normals = dict(value["branches"]), int(value["normals"])
    if contract is not None and value.get("heat") and asked.film is not None:
        answer.heat = await asyncio.to_thread(_heat, value["heat"], asked.film.extent, contract)
    return answer


def _heat(grid: Sequence[Sequence[float]], extent: tuple[int, int], contract: InputContract) -> HeatPicture:
    """Half a second for a film of four million pixels, which is why it is done neither in the engine nor on the event loop."""
    png, (low, high) = heat_png(to_film(np.asarray(grid, np.float32), *extent, contract))
    return HeatPicture(png="data:image/png;base64," + base64.b64encode(png).decode("ascii"), low=low, high=high)
