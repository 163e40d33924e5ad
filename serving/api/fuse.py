"""POST /v1/fuse: one patient's outcome from films, a note and fields of a table; whatever is not there is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastapi import Request
from starlette.responses import Response

from foundation.errors import InvalidRequest
from serving.api.answers import documented, film_report, json_answer, while_connected
from serving.api.routes import routes
from serving.api.service import Service, service_of
from serving.limits import check_count, check_texts
from serving.messages import Film
from serving.schemas.common import FilmReport, Provenance
from serving.schemas.fuse import FuseAnswer, FuseBody, FusedResult

router = routes("adapters")


@router.post("/v1/fuse", **documented(FuseBody, FuseAnswer))
async def fuse(request: Request) -> Response:
    """A calibrated probability from any of films, note and table, with an account of what each of them added."""
    service = service_of(request)
    async with service.receive(request, FuseBody) as body:
        return json_answer(await while_connected(request, _answer(service, body)))


async def _answer(service: Service, body: FuseBody) -> FuseAnswer:
    model = service.model_for(body.model, "fuse")
    _check(service, body)
    with service.items.take(max(1, len(body.images))):
        films = await service.all_or_none(
            [service.decode(film, f"images[{index}]", body) for index, film in enumerate(body.images)]
        )
        texts = (body.text,) if body.text and body.text.strip() else ()
        options = {"tabular": body.tabular, "contributions": body.contributions}
        plain = service.request("fuse", model, film=next(iter(films), None), texts=texts, options=options)
        asked = await service.ask(replace(plain, others=tuple(films[1:])))
    value = asked.value
    result = value.get("result")
    return FuseAnswer(
        model=model.name,
        assessed=bool(value.get("assessed", True)),
        looks_like=str(value.get("looks_like", "")),
        result=None if result is None else FusedResult(**result, positive=result["probability"] >= result["threshold"]),
        films=_reports(films, body.include_film),
        provenance=Provenance.from_value(value),
        timings=asked.timings,
    )


def _check(service: Service, body: FuseBody) -> None:
    check_count("images", len(body.images), service.limits.max_images, least=0)
    check_count("tabular", len(body.tabular), service.limits.max_fields, least=0)
    check_texts("text", [body.text] if body.text else [], service.limits.max_text_chars)
    if not body.images and not body.text and not body.tabular:
        raise InvalidRequest("Nothing to judge by: send 'images', 'text' or 'tabular', any of them.", param="images")


def _reports(films: Sequence[Film], include_film: bool) -> list[FilmReport]:
    return [report for film in films if (report := film_report(film, include_film)) is not None]
