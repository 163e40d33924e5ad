"""How the routes stand in the app: one flat list, each function given the request and the parts of its address, no more.

FastAPI documents them. It need not find, check or wrap anything for them, since they read their bodies and write their
answers themselves; and it would match a router that is included route by route, and then again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response

from serving.schemas.common import ErrorAnswer


class PlainRoute(APIRoute):
    """endpoint: an async function of a request, and of the parts of its address as strings, by name."""

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def answer(request: Request) -> Response:
            return await endpoint(request, **request.path_params)

        self.app = request_response(answer)


def routes(tag: str) -> APIRouter:
    """A list for the routes of one file."""
    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}}
    return APIRouter(tags=[tag], route_class=PlainRoute, responses=errors)


def add_routes(app: FastAPI, router: APIRouter) -> None:
    app.router.routes.extend(router.routes)
