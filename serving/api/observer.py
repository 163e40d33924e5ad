"""ASGI middleware around every route: a Call with its id, safe headers, a measure, a trail, an answer when our code breaks."""

from __future__ import annotations

import time
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foundation.errors import VesaliusError
from serving.api.answers import CallerLeftError
from serving.api.trail import Trail
from serving.call import Call, enter
from serving.http_errors import AuditUnavailable, error_response, internal_error
from serving.metrics import Metrics

_CLOSED_BY_CALLER = 499  # nginx's number; only ever seen in what is counted and remembered

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
        answer = _Answer(scope, receive, send, self.metrics, self.trail)
        enter(answer.call)
        self.metrics.in_flight.inc()
        try:
            await self._answered(answer, scope, receive)
        finally:
            self.metrics.in_flight.dec()
            with suppress(AuditUnavailable):  # nobody is left to be told
                answer.end()

    async def _answered(self, answer: _Answer, scope: Scope, receive: Receive) -> None:
        try:
            self.trail.require(scope["path"])
            await self.app(scope, receive, answer.send)
        except CallerLeftError:
            return
        except AuditUnavailable as error:
            await answer.replace(error)
        except Exception as error:  # the last border: whoever waits gets an answer, the log gets the place
            await answer.replace(internal_error(error))


class _Answer:
    """One answer on its way out. Its head is held back until its first byte, and its last byte until it is remembered."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, metrics: Metrics, trail: Trail) -> None:
        self.call = Call()
        self._scope, self._receive, self._send = scope, receive, send
        self._metrics, self._trail = metrics, trail
        self._head: Message | None = None
        self._has_begun = False
        self._has_ended = False
        self._status = _CLOSED_BY_CALLER

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.call.id
            headers["Cache-Control"] = "no-store"
            headers["X-Content-Type-Options"] = "nosniff"
            self._head = message
            return
        if not message.get("more_body", False):
            try:
                self.end()
            except AuditUnavailable as error:
                if not self._has_begun:
                    await self.replace(error)
                    return
        if self._head is not None:
            head, self._head, self._has_begun = self._head, None, True
            await self._send(head)
        await self._send(message)

    async def replace(self, error: VesaliusError) -> None:
        """Say this instead, where nothing of the answer has left yet."""
        self._head = None
        if not self._has_begun:
            await error_response(error)(self._scope, self._receive, self.send)

    def end(self) -> None:
        """Count and remember the call, once."""
        if self._has_ended:
            return
        self._has_ended = True
        route = getattr(self._scope.get("route"), "path", "unmatched")
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(self._status)).inc()
        self._metrics.request_seconds.labels(route).observe(time.monotonic() - self.call.started)
        self._trail.ended(self.call, method, route, self._status)
