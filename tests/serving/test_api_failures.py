"""The API under load, and when what stands behind it breaks."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from live_api import LABELS, data_uri, error_of, files, png_film, wait_until

from serving.api.chat import _outcomes
from serving.api.conversation import Conversation
from serving.api.service import Service
from serving.fake import ADAPTER, MODELS, FakeGateway
from serving.limits import ServerLimits
from serving.messages import ChatTurn, Outcome, Request

FILM = data_uri(png_film())


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
def test_codes_from_the_engine_have_their_status(http: httpx.Client, gateway: FakeGateway, code: str, status: int) -> None:
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
        while not answer.endswith(b"}"):
            answer += caller.recv(65536)
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


def test_a_half_read_answer_is_closed_not_left_to_the_garbage_collector() -> None:
    service = Service(FakeGateway(), ServerLimits())
    stream, kept = service.gateway.stream, []
    service.gateway.stream = lambda request: kept.append(stream(request)) or kept[0]  # type: ignore[method-assign]
    request = service.request("chat", MODELS[0], turns=(ChatTurn("user", "Hello"),))

    async def read_one_piece() -> None:
        pieces = _outcomes(service, Conversation(MODELS[0], request, (), include_film=False))
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(read_one_piece())
    assert service.gateway.cancelled == [request.id]
