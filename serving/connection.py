"""Connection: bodies to a server and checked answers back, with every failure as the error its code stands for.

`client.py` knows the routes; here is only how they are spoken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from foundation.errors import DeadlineExceeded, EngineUnavailable, ServiceError, VesaliusError
from serving.http_errors import STATUS, error_from
from serving.schemas.parsing import Answer

AnswerT = TypeVar("AnswerT", bound=Answer)


class Connection:
    """One connection pool. Every failure is a VesaliusError of the class its code stands for."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float, transport: httpx.BaseTransport | None) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.base_url = base_url.rstrip("/")
        # trust_env=False: a film must not travel through a proxy that happens to be set in the environment.
        self._http = httpx.Client(
            base_url=self.base_url, headers=headers, timeout=timeout_s, transport=transport, trust_env=False
        )

    def get(self, path: str, answer: type[AnswerT], accepted: Sequence[int] = ()) -> AnswerT:
        with self._translated():
            response = self._http.get(path)
        return read_answer(response, answer, accepted)

    def post(self, path: str, body: Mapping[str, Any], answer: type[AnswerT]) -> AnswerT:
        with self._translated():
            response = self._http.post(path, json=body)
        return read_answer(response, answer)

    def delete(self, path: str, answer: type[AnswerT]) -> AnswerT:
        with self._translated():
            response = self._http.delete(path)
        return read_answer(response, answer)

    def content(self, path: str, body: Mapping[str, Any], kind: str) -> bytes:
        """The answer as bytes of this media type."""
        with self._translated():
            response = self._http.post(path, json=body, headers={"Accept": kind})
        if response.is_error:
            raise error_of_response(response)
        return response.content

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The data of each server-sent event up to [DONE]."""
        with self._translated(), self._http.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
                raise error_of_response(response)
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield _json_object(line.removeprefix("data: "))
        raise EngineUnavailable("The answer broke off before its end. Ask again.")

    def close(self) -> None:
        self._http.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            raise DeadlineExceeded(f"The server at {self.base_url} did not answer in time. Try again.") from None
        except httpx.TransportError:
            raise EngineUnavailable(f"No server answers at {self.base_url}. Start one with: vesalius serve") from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise not_understood()
    return content


def read_answer(response: httpx.Response, answer: type[AnswerT], accepted: Sequence[int] = ()) -> AnswerT:
    """accepted: failing statuses whose body may be an answer all the same."""
    if response.is_error and response.status_code not in accepted:
        raise error_of_response(response)
    try:
        return answer.model_validate_json(response.content)
    except ValidationError:
        raise (error_of_response(response) if response.is_error else not_understood()) from None


def checked(answer: type[AnswerT], content: object) -> AnswerT:
    try:
        return answer.model_validate(content)
    except ValidationError:
        raise not_understood() from None


def not_understood() -> ServiceError:
    return ServiceError("The server gave an answer this client does not understand. Update the older of the two.")


def error_of_response(response: httpx.Response) -> VesaliusError:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"The server answered with status {response.status_code} and no explanation.")
    return error_of_body(error, response.headers.get("Retry-After", ""))


def error_of_body(error: object, retry_after: str = "") -> VesaliusError:
    """Of the error object in a body or an event; retry_after: seconds, as its header says them."""
    if not isinstance(error, Mapping):
        return ServiceError("The server failed and gave no explanation.")
    code, message = str(error.get("code")), str(error.get("message", "The server gave no explanation."))
    if code not in STATUS:
        return ServiceError(message)
    retry_after_s = float(retry_after) if retry_after.isdecimal() else 1.0
    return error_from(code, message, param=error.get("param"), retry_after_s=retry_after_s)
