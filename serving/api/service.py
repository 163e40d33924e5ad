"""What every route needs: the gateway, the limits, the budgets, the metrics; and the way one item is asked.

body -> admitted -> film decoded -> Request -> gateway -> Outcome -> Asked
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from foundation.errors import FilmError, InvalidRequest, VesaliusError
from serving.api.bodies import declared_bytes, read_body
from serving.api.films import raw_film
from serving.call import current_call
from serving.gateway import Gateway, ModelInfo, next_request_id
from serving.http_errors import ModelNotFound, error_from, internal_error
from serving.ledger import Ledger
from serving.limits import Budget, ServerLimits
from serving.mask_files import MaskFile
from serving.messages import Film, Operation, Outcome, Request
from serving.metrics import Metrics
from serving.schemas.common import FilmInput, ImageBody, Timings
from serving.schemas.parsing import BodyT

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Asked:
    """One item's answer: the engine's value, the film it was about, and where the time went."""

    value: Mapping[str, Any]
    film: Film | None
    timings: Timings


class Service:
    """Shared by all routes of one app; holds no request's state. ledger: where budgets are one for several fronts."""

    def __init__(self, gateway: Gateway, limits: ServerLimits, ledger: Ledger | None = None) -> None:
        self.gateway = gateway
        self.limits = limits
        self.metrics = Metrics()
        self.front = 0 if ledger is None else ledger.number
        items, content = (limits.max_items_in_flight, "places"), (limits.max_bytes_in_flight, "bytes for bodies")
        self.items = Budget(*items) if ledger is None else ledger.budget(*items, "items")
        self.body_bytes = Budget(*content) if ledger is None else ledger.budget(*content, "bytes")

    @asynccontextmanager
    async def receive(self, http: HttpRequest, model: type[BodyT], *, may_be_empty: bool = False) -> AsyncIterator[BodyT]:
        """The checked body, its memory counted for as long as the block lasts. Reads the headers that bind the call, too."""
        current_call().read_headers(http.headers)
        if may_be_empty and http.headers.get("content-length", "0") == "0" and "transfer-encoding" not in http.headers:
            yield model()
            return
        with self.body_bytes.take(declared_bytes(http, self.limits)):
            yield await read_body(http, model, self.limits)

    def model_for(self, name: str | None, operation: Operation) -> ModelInfo:
        """The model or adapter called `name` (None: the base), able to do `operation`."""
        info = self.model_named(name)
        if operation in info.capabilities:
            current_call().note(operation, info.name)
            return info
        can = ", ".join(info.capabilities) or "nothing"
        raise InvalidRequest(f"Model '{info.name}' cannot do '{operation}'; it can do: {can}.", param="model")

    def model_named(self, name: str | None) -> ModelInfo:
        """The model or adapter called `name` (None: the base), whatever it can do."""
        for info in self.gateway.models():
            if info.name == name or (name is None and info.kind == "base"):
                return info
        shown = "" if name is None else f" '{name[:100]}'"
        raise ModelNotFound(f"There is no model{shown} here. GET /v1/models lists what there is.", param="model")

    def request(self, operation: Operation, model: ModelInfo, *, film: Film | None = None, **content: Any) -> Request:
        arrival = time.monotonic()
        call = current_call()
        return Request(
            id=next_request_id(),
            operation=operation,
            adapter=model.name if model.kind == "adapter" else None,
            digest=model.digest if model.kind == "adapter" else "",
            film=film,
            arrival=arrival,
            deadline=arrival + call.within(self.limits.request_timeout_s),
            tenant=call.caller,
            stores=call.stores,
            trace=call.id,
            **content,
        )

    async def decode(self, film: FilmInput, name: str, shared: ImageBody) -> Film:
        """The film, or the error that names the field it came in."""
        raw = raw_film(film, name, shared)
        try:
            async with asyncio.timeout(self.time_left_s):
                decoded = await self.gateway.decode(raw)
        except (FilmError, InvalidRequest) as error:
            error.param = name
            raise
        except TimeoutError:
            raise self.too_late() from None
        self.metrics.decode_seconds.observe(decoded.decode_ms / 1000)
        current_call().note_study(decoded.digest)
        return decoded

    async def mask_file(self, wanted: MaskFile) -> bytes:
        """One film's masks as a file of the kind wanted."""
        try:
            async with asyncio.timeout(self.time_left_s):
                return await self.gateway.mask_file(wanted)
        except TimeoutError:
            raise self.too_late() from None

    async def load(self, name: str, digest: str) -> Mapping[str, Any]:
        """Make what the store holds under this name answer for it. What the adapter says of itself."""
        return await self._administer("load", name, {"digest": digest})

    async def unload(self, name: str) -> Mapping[str, Any]:
        return await self._administer("unload", name, {})

    async def _administer(self, operation: Operation, name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        request = replace(self.request(operation, self.model_named(None), options=options), adapter=name)
        try:
            async with asyncio.timeout(self.time_left_s):
                return value_of(await self.gateway.administer(request))
        except TimeoutError:
            raise self.too_late() from None

    async def ask(self, request: Request) -> Asked:
        """One answer. Raises what the Outcome says went wrong."""
        try:
            async with asyncio.timeout(self.time_left_s):
                outcome = await self.gateway.ask(request)
        except TimeoutError:
            raise self.too_late() from None
        return self.finished(request, outcome)

    def finished(self, request: Request, outcome: Outcome) -> Asked:
        """The last Outcome of a request as Asked, its times counted."""
        value = value_of(outcome)
        compute_ms = float(value.get("compute_ms", 0.0))
        queue_ms = max(0.0, (time.monotonic() - request.arrival) * 1000 - compute_ms)
        self.metrics.compute_seconds.labels(request.operation).observe(compute_ms / 1000)
        self.metrics.queue_seconds.labels(request.operation).observe(queue_ms / 1000)
        decode_ms = max((film.decode_ms for film in request.films), default=0.0)
        timings = Timings(queue_ms=round(queue_ms, 2), decode_ms=round(decode_ms, 2), compute_ms=round(compute_ms, 2))
        return Asked(value, request.film, timings)

    @property
    def time_left_s(self) -> float:
        """What this call may still take. Raises DeadlineExceeded when that is nothing."""
        return current_call().within(self.limits.request_timeout_s)

    def too_late(self) -> VesaliusError:
        return current_call().too_late(self.limits.request_timeout_s)

    def count_error(self, code: str) -> None:
        """One item failed, or a stream that had begun."""
        self.metrics.item_errors.labels(code).inc()
        current_call().errors.append(code)

    async def each(self, answers: Sequence[Coroutine[Any, Any, T]]) -> list[T | VesaliusError]:
        """All answers together; one that fails leaves its error in its place. A lone one raises it instead."""
        found = await self._all(answers)
        if len(found) == 1 and isinstance(found[0], VesaliusError):
            raise found[0]
        return found

    async def all_or_none(self, answers: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """All answers together; the first that failed is raised, once none of them runs any more."""
        found = await self._all(answers)
        whole: list[T] = []
        for one in found:
            if isinstance(one, VesaliusError):
                raise one
            whole.append(one)
        return whole

    async def _all(self, answers: Sequence[Coroutine[Any, Any, T]]) -> list[T | VesaliusError]:
        """A lone one needs no task of its own."""
        if len(answers) == 1:
            return [await self._settled(answers[0])]
        return await asyncio.gather(*(self._settled(answer) for answer in answers))

    async def _settled(self, answer: Coroutine[Any, Any, T]) -> T | VesaliusError:
        try:
            return await answer
        except VesaliusError as error:
            self.count_error(error.code)
            return error
        except Exception as error:  # the caller must still get an answer for the other items
            self.count_error("internal_error")
            return internal_error(error)


def value_of(outcome: Outcome) -> Mapping[str, Any]:
    """The value of an Outcome, or the error it carries, raised."""
    if outcome.error_code is not None:
        raise error_from(outcome.error_code, outcome.error_message, retry_after_s=outcome.retry_after_s or 1.0)
    return outcome.value or {}


def service_of(http: HttpRequest) -> Service:
    service = http.app.state.service
    assert isinstance(service, Service)
    return service
