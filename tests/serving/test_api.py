"""The routes over a FakeGateway: shapes, refusals, load, and what happens when something breaks."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from live_api import NIFTI_FILM, color_picture, data_uri, png_film, serving, wait_until
from PIL import Image

from serving.api.app import create_app
from serving.fake import ADAPTER, BASE, FINDINGS, MODELS, FakeGateway, fake_film
from serving.limits import ServerLimits
from serving.messages import Outcome, RawFilm, Request

LIMITS = ServerLimits(
    max_body_bytes=200_000, max_bytes_in_flight=1_000_000, max_images=4, max_labels=6, max_prompts=20, max_text_chars=99
)
LABELS = ["effusion", "nodule"]


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(FakeGateway(), limits=LIMITS)


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[str]:
    with serving(app) as found:
        yield found


@pytest.fixture
def gateway(app: FastAPI) -> FakeGateway:
    app.state.service.gateway = FakeGateway()
    return app.state.service.gateway


@pytest.fixture
def http(address: str, gateway: FakeGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, trust_env=False) as found:
        yield found


def files(*films: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", ("anything", film)) for film in films]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object, checked for OpenAI's shape."""
    content = response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert content["error"]["message"].endswith((".", "KEY'."))
    return content["error"]


def without_times(content: Any) -> Any:
    """An answer less what differs from call to call."""
    if isinstance(content, dict):
        return {key: without_times(item) for key, item in content.items() if key not in ("timings", "id", "created")}
    return [without_times(item) for item in content] if isinstance(content, list) else content


# --- zero-shot -----------------------------------------------------------------------------------------------------


def test_zero_shot_scores_films_against_labels(http: httpx.Client, gateway: FakeGateway) -> None:
    films = [png_film(1), png_film(2)]
    answer = http.post("/v1/zero_shot", json={"images": [data_uri(film) for film in films], "labels": LABELS}).json()
    assert [item["index"] for item in answer["data"]] == [0, 1]
    for item, film in zip(answer["data"], films, strict=True):
        assert [score["label"] for score in item["scores"]] == LABELS
        assert sum(score["score"] for score in item["scores"]) == pytest.approx(1)
        assert item["provenance"]["pixels"] == fake_film(RawFilm(film)).digest
        assert set(item["timings"]) == {"queue_ms", "decode_ms", "compute_ms"}
    assert answer["scoring"] == gateway.requests[0].options["scoring"] == "softmax"


def test_json_and_multipart_are_answered_alike(http: httpx.Client) -> None:
    films = [png_film(1), png_film(2)]
    uris = [data_uri(film) for film in films]
    left = http.post("/v1/zero_shot", json={"images": uris, "labels": LABELS, "scoring": "sigmoid"})
    right = http.post("/v1/zero_shot", files=files(*films), data={"labels": LABELS, "scoring": "sigmoid"})
    assert without_times(left.json()) == without_times(right.json())
    left = http.post("/v1/classify", json={"images": uris[0], "model": ADAPTER})
    right = http.post("/v1/classify", files=files(films[0]), data={"model": ADAPTER})
    assert without_times(left.json()) == without_times(right.json())
    left = http.post("/v1/embeddings", json={"images": uris, "input": "a"})
    right = http.post("/v1/embeddings", files=files(*films), data={"input": "a"})
    assert without_times(left.json()) == without_times(right.json())
    messages = [{"role": "user", "content": "Is there an effusion?"}]
    left = http.post("/v1/chat/completions", json={"messages": messages, "images": uris[0]})
    right = http.post("/v1/chat/completions", files=files(films[0]), data={"messages": json.dumps(messages)})
    assert without_times(left.json()) == without_times(right.json())
    left = http.post("/v1/zero_shot/hf", json={"inputs": uris[0], "parameters": {"candidate_labels": LABELS}})
    right = http.post("/v1/zero_shot/hf", files=files(films[0]), data={"parameters": '{"candidate_labels": ["effusion", "nodule"]}'})
    assert left.json() == right.json()
    assert left.status_code == 200


def test_one_bad_film_does_not_fail_the_others(http: httpx.Client) -> None:
    films = [png_film(1), b"not a film", png_film(2)[:-900], png_film(2)]
    for path, fields in (("/v1/zero_shot", {"labels": LABELS}), ("/v1/classify", {"model": ADAPTER})):
        whole = http.post(path, files=files(films[0], films[3]), data=fields).json()["data"]
        mixed = http.post(path, files=files(*films), data=fields)
        assert mixed.status_code == 200
        items = mixed.json()["data"]
        assert [item["error"] and item["error"]["code"] for item in items] == [
            None, "film_unsupported", "film_unreadable", None,
        ]  # fmt: skip
        assert items[1]["error"]["param"] == "images[1]"
        assert without_times(items[0]) == without_times(whole[0])
        assert without_times({**items[3], "index": 1}) == without_times(whole[1])


def test_a_film_that_breaks_the_gateway_fails_alone(http: httpx.Client, gateway: FakeGateway) -> None:
    decode = gateway.decode

    async def fragile(raw: RawFilm) -> Any:
        if raw.data == png_film(2):
            raise RuntimeError("patient name in a library's text")
        return await decode(raw)

    gateway.decode = fragile  # type: ignore[method-assign]
    answer = http.post("/v1/zero_shot", files=files(png_film(1), png_film(2)), data={"labels": LABELS})
    assert answer.json()["data"][0]["error"] is None
    assert answer.json()["data"][1]["error"]["code"] == "internal_error"
    assert "patient" not in answer.text


def test_a_lone_bad_film_is_a_status(http: httpx.Client) -> None:
    answer = http.post("/v1/zero_shot", json={"images": [data_uri(b"junk")], "labels": LABELS})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "film_unsupported"
    assert error_of(answer)["param"] == "images[0]"


def test_pairs_of_prompts(http: httpx.Client, gateway: FakeGateway) -> None:
    body = {"images": data_uri(png_film()), "labels": LABELS}
    given = http.post("/v1/zero_shot", json={**body, "negatives": ["clear angles", "clear lungs"]}).json()
    assert given["scoring"] == "pairwise"
    assert gateway.requests[-1].options["negatives"] == given["negatives"] == ["clear angles", "clear lungs"]
    derived = http.post("/v1/zero_shot", json={**body, "scoring": "pairwise"}).json()
    assert gateway.requests[-1].options["negatives"] == derived["negatives"] == ["no effusion", "no nodule"]


def test_templates_are_the_callers_or_the_models(http: httpx.Client, gateway: FakeGateway) -> None:
    body = {"images": data_uri(png_film()), "labels": LABELS}
    http.post("/v1/zero_shot", json={**body, "templates": ["a film with {}", "{}"]})
    assert gateway.requests[-1].options["templates"] == ["a film with {}", "{}"]
    http.post("/v1/zero_shot", json=body)
    assert gateway.requests[-1].options["templates"] == ["{}"]
    from dataclasses import replace

    models = [replace(MODELS[0], templates=("chest film: {}",))]
    gateway.models = lambda: models  # type: ignore[method-assign]
    http.post("/v1/zero_shot", json=body)
    assert gateway.requests[-1].options["templates"] == ["chest film: {}"]


def test_what_is_not_a_film_of_this_kind_gets_no_number(http: httpx.Client) -> None:
    for path, fields, place in (
        ("/v1/zero_shot", {"labels": LABELS}, "scores"),
        ("/v1/classify", {"model": ADAPTER}, "labels"),
    ):
        item = http.post(path, files=files(color_picture()), data=fields).json()["data"][0]
        assert (item["assessed"], item["looks_like"], item[place]) == (False, "a photograph", [])


def test_hugging_face_shapes(http: httpx.Client) -> None:
    uri, parameters = data_uri(png_film()), {"candidate_labels": [*LABELS, "mass"], "hypothesis_template": "film: {}"}
    single = http.post("/v1/zero_shot/hf", json={"inputs": uri, "parameters": parameters}).json()
    assert [set(entry) for entry in single] == [{"label", "score"}] * 3
    assert single == sorted(single, key=lambda entry: -entry["score"])
    several = http.post("/v1/zero_shot/hf", json={"inputs": [uri, uri], "parameters": parameters}).json()
    assert several == [single, single]
    body = {"images": uri, "labels": parameters["candidate_labels"], "templates": "film: {}", "format": "hf"}
    assert http.post("/v1/zero_shot", json=body).json() == single
    refused = http.post("/v1/zero_shot/hf", files=files(color_picture()), data={"parameters": json.dumps(parameters)})
    assert refused.status_code == 400
    assert "a photograph" in error_of(refused)["message"]


# --- classify, films, models -----------------------------------------------------------------------------------------


def test_classify_says_which_findings_reach_their_threshold(http: httpx.Client, gateway: FakeGateway) -> None:
    item = http.post("/v1/classify", files=files(png_film()), data={"model": ADAPTER}).json()["data"][0]
    assert [label["label"] for label in item["labels"]] == list(FINDINGS)
    for label in item["labels"]:
        assert label["positive"] == (label["probability"] >= label["threshold"])
    assert gateway.requests[-1].adapter == ADAPTER
    assert item["provenance"]["adapter"] == ADAPTER


def test_the_film_comes_back_as_the_model_saw_it(http: httpx.Client) -> None:
    film = png_film()
    fields = {"model": ADAPTER, "include_film": "true"}
    item = http.post("/v1/classify", files=files(film), data=fields).json()["data"][0]
    encoded = item["film"]["png"].removeprefix("data:image/png;base64,")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    np.testing.assert_array_equal(seen, fake_film(RawFilm(film)).pixels)


def test_slices_are_chosen_for_one_film_or_for_all(http: httpx.Client) -> None:
    volume = {"data": base64.b64encode(NIFTI_FILM).decode(), "slice_index": 7}
    body = {"images": [volume, base64.b64encode(NIFTI_FILM).decode()], "slice_index": 2, "labels": LABELS}
    films = [item["film"] for item in http.post("/v1/zero_shot", json=body).json()["data"]]
    assert [film["slice_index"] for film in films] == [7, 2]
    too_high = http.post("/v1/zero_shot", json={**body, "images": [{**volume, "slice_index": 20}]})
    assert error_of(too_high)["param"] == "images[0]"


def test_models_never_show_a_path(http: httpx.Client) -> None:
    listed = http.get("/v1/models")
    assert [model["id"] for model in listed.json()["data"]] == [BASE, ADAPTER]
    assert "/" not in "".join(model["vesalius"]["description"] for model in listed.json()["data"])
    assert http.get(f"/v1/models/{ADAPTER}").json() == listed.json()["data"][1]


def test_a_model_is_asked_only_what_it_can_do(http: httpx.Client) -> None:
    refused = http.post("/v1/classify", files=files(png_film()), data={"model": BASE})
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "model"
    assert "zero_shot" in error_of(refused)["message"]


# --- refusals ------------------------------------------------------------------------------------------------------

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


# --- under load, and when something breaks ----------------------------------------------------------------------------


def test_too_much_at_once_is_429_and_the_first_is_still_answered(http: httpx.Client, app: FastAPI) -> None:
    service = app.state.service
    gateway = service.gateway
    gateway.delay_s = 0.4
    answers: list[httpx.Response] = []
    body = {"images": [FILM] * 4, "labels": LABELS}
    capacity, service.items.capacity = service.items.capacity, 6
    try:
        first = threading.Thread(target=lambda: answers.append(http.post("/v1/zero_shot", json=body)))
        first.start()
        wait_until(lambda: service.items.in_use == 4)
        refused = http.post("/v1/zero_shot", json=body)
        accepted = http.post("/v1/zero_shot", json={**body, "images": FILM})
        first.join()
    finally:
        service.items.capacity = capacity
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "overloaded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert accepted.status_code == answers[0].status_code == 200
    assert service.items.in_use == service.body_bytes.in_use == 0


def test_a_caller_who_leaves_is_not_computed_for(address: str, gateway: FakeGateway, app: FastAPI) -> None:
    gateway.delay_s = 5.0
    content = json.dumps({"images": FILM, "labels": LABELS}).encode()
    head = (
        f"POST /v1/zero_shot HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as caller:
        caller.sendall(head.encode() + content)
        wait_until(lambda: len(gateway.requests) == 1)
    wait_until(lambda: gateway.cancelled == [gateway.requests[0].id], seconds=3)
    wait_until(lambda: app.state.service.items.in_use == 0)


@pytest.mark.parametrize(
    ("code", "status"),
    [("engine_unavailable", 503), ("deadline_exceeded", 504), ("adapter_not_found", 404), ("never_heard_of", 500)],
)
def test_codes_from_the_engine_have_their_status(
    http: httpx.Client, gateway: FakeGateway, code: str, status: int
) -> None:
    gateway.error = (code, "A sentence of ours.")
    answer = http.post("/v1/zero_shot", files=files(png_film()), data={"labels": LABELS})
    assert answer.status_code == status
    assert error_of(answer)["code"] == (code if status != 500 else "internal_error")
    several = http.post("/v1/zero_shot", files=files(png_film(), png_film()), data={"labels": LABELS})
    assert several.status_code == 200
    assert {item["error"]["code"] for item in several.json()["data"]} == {error_of(answer)["code"]}


def test_a_gateway_that_never_answers_is_504(http: httpx.Client, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.state.service, "limits", ServerLimits(request_timeout_s=0.1))
    app.state.service.gateway.delay_s = 30
    for answer in (
        http.post("/v1/classify", files=files(png_film()), data={"model": ADAPTER}),
        http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}]}),
    ):
        assert answer.status_code == 504
        assert error_of(answer)["code"] == "deadline_exceeded"
    assert len(app.state.service.gateway.cancelled) == 2


def test_a_body_that_stops_arriving_is_408(address: str, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.state.service, "limits", ServerLimits(body_timeout_s=0.1))
    head = "POST /v1/zero_shot HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5) as caller:
        caller.sendall(head.encode())
        answer = caller.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer


def test_an_unforeseen_error_tells_no_one_what_it_said(
    http: httpx.Client, gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise RuntimeError("/home/someone/DOE^JANE.dcm")

    gateway.models = broken  # type: ignore[method-assign]
    with caplog.at_level(logging.DEBUG):
        answer = http.get("/v1/models")
    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal_error"
    assert "JANE" not in answer.text + caplog.text
    assert "RuntimeError in broken" in caplog.text


def test_an_answer_that_does_not_fit_its_labels_is_an_internal_error(http: httpx.Client, gateway: FakeGateway) -> None:
    async def short(request: Request) -> Outcome:
        return Outcome(request.id, {"scores": [1.0], "logits": [1.0]})

    gateway.ask = short  # type: ignore[method-assign]
    assert http.post("/v1/zero_shot", files=files(png_film()), data={"labels": LABELS}).status_code == 500


# --- health, metrics, headers, document -------------------------------------------------------------------------------


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
