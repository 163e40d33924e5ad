"""What the API refuses, and that every refusal names what is wrong in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from live_api import LABELS, data_uri, error_of, files, png_film

FILM = data_uri(png_film())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"labels": LABELS}, "images"),
        ({"images": [], "labels": LABELS}, "images"),
        ({"images": FILM}, "labels"),
        ({"images": FILM, "labels": []}, "labels"),
        ({"images": FILM, "labels": ["a", "a"]}, "labels"),
        ({"images": FILM, "labels": ["a", " "]}, "labels[1]"),
        ({"images": FILM, "labels": ["a" * 100]}, "labels[0]"),
        ({"images": FILM, "labels": list("abcdefg")}, "labels"),
        ({"images": [FILM] * 5, "labels": LABELS}, "images"),
        ({"images": FILM, "labels": list("abcdef"), "templates": ["1{}", "2{}", "3{}", "4{}"]}, "labels"),
        ({"images": FILM, "labels": LABELS, "templates": ["no place"]}, "templates"),
        ({"images": FILM, "labels": LABELS, "templates": ["{} {}"]}, "templates"),
        ({"images": FILM, "labels": LABELS, "negatives": ["one"]}, "negatives"),
        ({"images": FILM, "labels": LABELS, "negatives": ["1", "2"], "scoring": "softmax"}, "negatives"),
        ({"images": FILM, "labels": LABELS, "scoring": "best"}, "scoring"),
        ({"images": FILM, "labels": LABELS, "temprature": 1}, "temprature"),
        ({"images": FILM, "labels": LABELS, "window": [40, 0]}, "window"),
        ({"images": FILM, "labels": LABELS, "slice_index": -1}, "slice_index"),
        ({"images": FILM, "labels": LABELS, "slice_index": 1 << 63}, "slice_index"),
        ({"images": [{"data": FILM, "slice": 1}], "labels": LABELS}, "images[0].slice"),
        ({"images": "http://127.0.0.1/film.png", "labels": LABELS}, "images[0]"),
        ({"images": "data:image/png,plain", "labels": LABELS}, "images[0]"),
        ({"images": "not base64!", "labels": LABELS}, "images[0]"),
        ({"images": "", "labels": LABELS}, "images[0]"),
        ({"images": 3, "labels": LABELS}, "images"),
        ({"images": FILM, "labels": LABELS, "model": "nowhere"}, "model"),
    ],
)
def test_bad_fields_are_named(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    refused = http.post("/v1/zero_shot", json=body)
    assert refused.status_code == (404 if body.get("model") else 400)
    assert error_of(refused)["param"] == param


@pytest.mark.parametrize(
    ("method", "path", "content", "kind", "status", "code"),
    [
        ("GET", "/v1/nowhere", b"", "", 404, "route_not_found"),
        ("GET", "/docs", b"", "", 404, "route_not_found"),
        ("GET", "/v1/zero_shot", b"", "", 405, "method_not_allowed"),
        ("POST", "/v1/models", b"", "", 405, "method_not_allowed"),
        ("GET", "/v1/models/nowhere", b"", "", 404, "model_not_found"),
        ("POST", "/v1/zero_shot", b"{", "application/json", 400, "invalid_request"),
        ("POST", "/v1/zero_shot", b"", "application/json", 400, "invalid_request"),
        ("POST", "/v1/zero_shot", b"[]", "application/json", 400, "invalid_request"),
        ("POST", "/v1/zero_shot", b'{"labels": ["\\ud800"]}', "application/json", 400, "invalid_request"),
        ("POST", "/v1/zero_shot", b"[" * 100_000, "application/json", 400, "invalid_request"),
        ("POST", "/v1/zero_shot", b"labels=a", "application/x-www-form-urlencoded", 415, "media_type_unsupported"),
        ("POST", "/v1/zero_shot", b"labels", "", 415, "media_type_unsupported"),
        ("POST", "/v1/zero_shot", b"x", "multipart/form-data", 400, "invalid_request"),
        ("POST", "/v1/zero_shot", b"x", "multipart/form-data; boundary=b", 400, "invalid_request"),
        ("POST", "/v1/zero_shot", b" " * 200_001, "application/json", 413, "body_too_large"),
        ("POST", "/v1/zero_shot", b" " * 200_001, "multipart/form-data; boundary=b", 413, "body_too_large"),
    ],
)
def test_every_refusal_has_openais_shape(
    http: httpx.Client, method: str, path: str, content: bytes, kind: str, status: int, code: str
) -> None:
    refused = http.request(method, path, content=content, headers={"Content-Type": kind} if kind else {})
    assert refused.status_code == status
    assert error_of(refused)["code"] == code
    if status == 405:
        assert refused.headers["allow"] in ("GET", "POST")


def test_a_body_in_chunks_is_counted_while_it_comes(http: httpx.Client) -> None:
    refused = http.post(
        "/v1/zero_shot", content=(b" " * 10_000 for _ in range(30)), headers={"Content-Type": "application/json"}
    )
    assert refused.status_code == 413
    assert error_of(refused)["code"] == "body_too_large"


def test_multipart_refusals_name_the_part(http: httpx.Client) -> None:
    wrong_name = http.post("/v1/zero_shot", files=[("picture", ("a", png_film()))], data={"labels": LABELS})
    assert error_of(wrong_name)["param"] == "picture"
    not_a_file = http.post("/v1/zero_shot", files=[("file", (None, b"text"))], data={"labels": LABELS})
    assert error_of(not_a_file)["param"] == "file"
    both = http.post("/v1/zero_shot", files=files(png_film()), data={"labels": LABELS, "images": FILM})
    assert error_of(both)["param"] == "images"
    too_many = http.post("/v1/zero_shot", files=files(*[png_film()] * 5), data={"labels": LABELS})
    assert too_many.status_code == 400
    assert "4 files" in error_of(too_many)["message"]
