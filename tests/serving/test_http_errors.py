"""Every error has a status of its own, and comes back from its code as the same class."""

from __future__ import annotations

import json

import pytest

from foundation.errors import Overloaded, VesaliusError
from serving.http_errors import STATUS, InternalError, all_errors, error_from, error_response, error_type

OURS = [kind for kind in all_errors() if kind.__module__ in ("foundation.errors", "serving.http_errors")]


def test_the_table_is_complete_and_holds_nothing_else() -> None:
    assert {kind.code for kind in OURS} == set(STATUS)


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in OURS}) == len(OURS) == len(STATUS)


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.code)
def test_an_error_survives_the_wire(kind: type[VesaliusError]) -> None:
    error = error_from(kind.code, "What is wrong, and what to do.", param="images[0]", retry_after_s=3.2)
    assert type(error) is kind
    assert error.message == "What is wrong, and what to do."
    response = error_response(error)
    assert response.status_code == STATUS[kind.code]
    content = json.loads(bytes(response.body))["error"]
    assert (content["code"], content["message"]) == (kind.code, error.message)
    assert content["param"] == (None if issubclass(kind, Overloaded) else "images[0]")


def test_overloaded_says_when_to_come_back() -> None:
    assert error_response(Overloaded("Busy.", retry_after_s=3.2)).headers["retry-after"] == "4"
    assert error_response(Overloaded("Busy.", retry_after_s=0.0)).headers["retry-after"] == "1"


def test_a_code_that_is_not_ours_is_an_internal_error_without_its_text() -> None:
    error = error_from("CUDAError", "library text")
    assert type(error) is InternalError
    assert "library text" not in error.message


def test_types_are_openais() -> None:
    assert [error_type(status) for status in (400, 401, 404, 429, 500, 503)] == [
        "invalid_request_error",
        "authentication_error",
        "invalid_request_error",
        "rate_limit_error",
        "server_error",
        "server_error",
    ]
