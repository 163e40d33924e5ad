"""Health, metrics, headers and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
from live_api import data_uri, files, png_film

from serving.fake import ADAPTER, FakeGateway

FILM = data_uri(png_film())


def test_health_and_readiness(http: httpx.Client, gateway: FakeGateway) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json()["last_forward_age_s"] == 0.5
    gateway.is_ready = False
    assert http.get("/readyz").status_code == 503
    assert http.get("/readyz").json()["reason"]
    assert http.get("/healthz").status_code == 200


def test_metrics_count_by_route_and_never_hold_a_callers_text(http: httpx.Client) -> None:
    http.post("/v1/classify", files=files(png_film(), b"junk"), data={"model": ADAPTER})
    http.get("/v1/models/DOE-JANE")
    http.get("/DOE-JANE")
    http.request("DOEJANE", "/v1/models")
    http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}], "images": FILM})
    text = http.get("/metrics").text
    assert 'vesalius_requests_total{method="POST",route="/v1/classify",status="200"}' in text
    assert 'vesalius_requests_total{method="GET",route="/v1/models/{model_id:path}",status="404"}' in text
    assert 'vesalius_item_errors_total{code="film_unsupported"}' in text
    assert 'vesalius_compute_seconds_count{operation="classify"}' in text
    assert "vesalius_ready 1.0" in text
    assert "vesalius_requests_in_flight 1.0" in text  # this very request
    assert "JANE" not in text


def test_every_answer_may_not_be_stored_and_has_an_id(http: httpx.Client) -> None:
    for answer in (http.get("/v1/models"), http.get("/nowhere"), http.post("/v1/zero_shot", json={})):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"].startswith("req-")


def test_the_openapi_document_describes_bodies_and_answers(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, body in (("/v1/zero_shot", "ZeroShotBody"), ("/v1/chat/completions", "ChatBody")):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert content["application/json"]["schema"]["$ref"].endswith(body)
        assert set(content) == {"application/json", "multipart/form-data"}
    references = set(_references(document))
    assert references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(schemas)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for item in node.values():
            yield from _references(item)
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
