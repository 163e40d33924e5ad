"""One table from error codes to HTTP status, and OpenAI's error object around every error.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "images[2]", "code": "film_unreadable"}}

Messages are sentences of ours (see `foundation/errors.py`); what is not of ours becomes `internal_error`.
Knows nothing of the routes; `api/app.py` installs the handlers.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from foundation.errors import EngineUnavailable, InvalidRequest, Overloaded, ServiceError, VesaliusError
from serving.call import current_call

log = logging.getLogger("serving.api")


class ModelNotFound(InvalidRequest):
    code = "model_not_found"


class RouteNotFound(InvalidRequest):
    code = "route_not_found"


class MethodNotAllowed(InvalidRequest):
    code = "method_not_allowed"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"


class MediaTypeUnsupported(InvalidRequest):
    code = "media_type_unsupported"


class BodyTimeout(InvalidRequest):
    code = "body_timeout"


class InternalError(ServiceError):
    """Something of ours broke; the log says where, the caller learns no more than that."""

    code = "internal_error"

    def __init__(self, message: str = "The server failed on this request. Nothing is wrong with what you sent.") -> None:
        super().__init__(message)


class AuditUnavailable(ServiceError):
    """Nothing is answered that could not be remembered."""

    code = "audit_unavailable"

    def __init__(
        self, message: str = "The server cannot write its audit log, so it answers nothing. Its operator finds more in its log."
    ) -> None:
        super().__init__(message)


STATUS: Mapping[str, int] = {
    "vesalius_error": 500,
    "invalid_request": 400,
    "film_error": 400,
    "film_unreadable": 400,
    "film_unsupported": 400,
    "film_too_large": 413,
    "checkpoint_error": 500,
    "checkpoint_not_found": 404,
    "checkpoint_refused": 400,
    "adapter_error": 500,
    "adapter_not_found": 404,
    "adapter_refused": 400,
    "manifest_invalid": 400,
    "service_error": 500,
    "unauthorized": 401,
    "forbidden": 403,
    "overloaded": 429,
    "deadline_exceeded": 504,
    "engine_unavailable": 503,
    "model_not_found": 404,
    "route_not_found": 404,
    "method_not_allowed": 405,
    "body_too_large": 413,
    "media_type_unsupported": 415,
    "body_timeout": 408,
    "internal_error": 500,
    "audit_unavailable": 503,
}

ENGINE_RETRY_S = 5  # a lost engine opens a model of ordinary size in about this time
_TYPE_BY_STATUS: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_BY_HTTP_STATUS: Mapping[int, VesaliusError] = {
    404: RouteNotFound("There is no such address here. GET /openapi.json lists the routes."),
    405: MethodNotAllowed("This address does not answer that method. GET /openapi.json lists the routes."),
}


def all_errors(root: type[VesaliusError] = VesaliusError) -> Iterator[type[VesaliusError]]:
    """The root and every error class below it that has been imported."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def error_from(code: str, message: str, *, param: str | None = None, retry_after_s: float = 1.0) -> VesaliusError:
    """The error a code stands for: what the API raises for an Outcome, and the client for an answer."""
    for kind in all_errors():
        if kind.code != code:
            continue
        if issubclass(kind, Overloaded):
            return kind(message, retry_after_s=retry_after_s)
        error = kind(message)
        error.param = param
        return error
    return InternalError()


def error_type(status: int) -> str:
    return _TYPE_BY_STATUS.get(status, "invalid_request_error" if status < 500 else "server_error")


def status_of(error: VesaliusError) -> int:
    return STATUS.get(error.code, 500)


def error_object(error: VesaliusError) -> dict[str, Any]:
    """OpenAI's inner error object."""
    return {
        "message": error.message,
        "type": error_type(status_of(error)),
        "param": error.param,
        "code": error.code,
    }


def error_response(error: VesaliusError) -> JSONResponse:
    """The whole answer; the call's record learns its code."""
    current_call().errors.append(error.code)
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, EngineUnavailable):
        headers["Retry-After"] = str(ENGINE_RETRY_S)
    if status_of(error) == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error_object(error)}, status_code=status_of(error), headers=headers)


async def on_vesalius_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, VesaliusError)
    return error_response(error)


async def on_http_exception(_: Request, error: Exception) -> JSONResponse:
    """The framework's own refusals, reworded: its sentences are not ours."""
    assert isinstance(error, HTTPException)
    ours = _BY_HTTP_STATUS.get(error.status_code)
    if ours is None:
        ours = InvalidRequest("The request could not be read.") if error.status_code < 500 else InternalError()
    response = error_response(ours)
    if error.status_code == 405 and error.headers:
        response.headers["Allow"] = error.headers.get("Allow", "")
    return response


def internal_error(error: Exception) -> VesaliusError:
    """Log where an unforeseen error arose, never what it said: its text may hold a file name or a patient's."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    log.error("unforeseen %s in %s", type(error).__name__, places)
    return InternalError()
