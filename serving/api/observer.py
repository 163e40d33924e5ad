"""ASGI middleware around every route: a Call with its id, safe headers, a measure, a trail, an answer when our code breaks."""

from __future__ import annotations

import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.answers import CallerLeftError
from serving.api.trail import Trail
from serving.call import Call, enter
from serving.http_errors import AuditUnavailable, error_response, internal_error
from serving.metrics import Metrics

_CLOSED_BY_CALLER = 499  # nginx's number; only ever seen in the metrics

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observer:
    """Sets X-Request-Id and no-store on every answer, counts and remembers it, and turns what nobody caught into a 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics, trail: Trail) -> None:
        self.app = app
        self.metrics = metrics
        self.trail = trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = Call()
        enter(call)
        status = _CLOSED_BY_CALLER

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = call.id
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        self.metrics.in_flight.inc()
        try:
            self.trail.require(scope["path"])
            await self.app(scope, receive, observed_send)
        except CallerLeftError:
            pass
        except AuditUnavailable as error:
            await error_response(error)(scope, receive, observed_send)
        except Exception as error:  # the last border: whoever waits gets an answer, the log gets the place
            problem = error_response(internal_error(error))
            if status == _CLOSED_BY_CALLER:
                await problem(scope, receive, observed_send)
        finally:
            self.metrics.in_flight.dec()
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(time.monotonic() - call.started)
            self.trail.ended(call, method, route, status)
