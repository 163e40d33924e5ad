"""From what was asked to what is answered: the parts of an answer that all routes share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from foundation.errors import VesaliusError
from serving.api.bodies import FILE_PART
from serving.api.films import png_data_uri
from serving.api.service import Asked
from serving.messages import Film
from serving.schemas.common import ErrorReport, FilmReport, Item, Provenance
from serving.schemas.parsing import Body

T = TypeVar("T")
ItemT = TypeVar("ItemT", bound=Item)


class CallerLeftError(Exception):
    """The caller closed the connection; there is no one to answer."""


async def while_connected(http: Request, work: Awaitable[T]) -> T:
    """Await `work`, and cancel it when the caller leaves: nobody waits for the answer any more. Raises CallerLeftError."""
    waiting = asyncio.current_task()
    assert waiting is not None
    cancelled_before = waiting.cancelling()
    watch = asyncio.create_task(_cancel_on_leaving(http, waiting))
    try:
        return await work
    except asyncio.CancelledError:
        if watch.done() and waiting.uncancel() <= cancelled_before:
            raise CallerLeftError from None
        raise
    finally:
        watch.cancel()


async def _cancel_on_leaving(http: Request, waiting: asyncio.Task[Any]) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    waiting.cancel()


def film_report(film: Film | None, include_film: bool) -> FilmReport | None:
    if film is None:
        return None
    return FilmReport.from_film(film, png_data_uri(film) if include_film else None)


def item(kind: type[ItemT], index: int, asked: Asked | VesaliusError, include_film: bool) -> ItemT:
    """One film's answer with what every answer says about its making, or its error; the result itself is left empty."""
    if isinstance(asked, VesaliusError):
        return kind(index=index, error=ErrorReport.from_error(asked), assessed=False)
    return kind(
        index=index,
        assessed=bool(asked.value.get("assessed", True)),
        looks_like=str(asked.value.get("looks_like", "")),
        film=film_report(asked.film, include_film),
        provenance=Provenance.from_value(asked.value),
        timings=asked.timings,
    )


def json_answer(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


def documented(body: type[Body], answer: Any, *, files: Sequence[str] = (), may_be_empty: bool = False) -> dict[str, Any]:
    """What OpenAPI says of a route whose body `read_body` reads by itself; `app.py` adds the body's schema.

    files: the media types that it can answer with beside JSON.
    """
    reference = {"$ref": f"#/components/schemas/{body.__name__}"}
    parts = {
        "type": "object",
        "properties": {FILE_PART: {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
    content = {
        "application/json": {"schema": reference},
        "multipart/form-data": {"schema": {"allOf": [parts, reference]}},
    }
    extra: dict[str, Any] = {"requestBody": {"required": not may_be_empty, "content": content}}
    binary = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in files}
    answers: dict[int | str, dict[str, Any]] = {200: {"content": binary}} if binary else {}
    return {"response_model": answer, "openapi_extra": extra, "responses": answers}
