"""What is remembered of a call, in the log, the audit log and the metrics; and what never is."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_api import LABELS, data_uri, error_of, png_film, serving

from serving.api.app import create_app
from serving.api.trail import Trail
from serving.audit import AuditLog
from serving.fake import ADAPTER, FakeGateway
from serving.keys import ApiKey, KeyRing, new_key
from serving.logs import WITHHELD, configure

PLANTED = ("JANEDOE", "19470312", "MRN-0815", "anonymous-ward")
KEY, ADMIN = new_key(), new_key()


@pytest.fixture
def audit(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path)


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    """Everything this process logs, as the server would write it."""
    root = logging.getLogger()
    handlers, level, text = root.handlers[:], root.level, io.StringIO()
    configure(logging.DEBUG, text)
    yield text
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def http(audit: AuditLog, gateway: FakeGateway) -> Iterator[httpx.Client]:
    ring = KeyRing(given=(ApiKey.given(KEY, "ward", ("infer",)), ApiKey.given(ADMIN, "operator")), guards=True)
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        serving(create_app(gateway, keys=ring, trail=Trail(audit))) as address,
        httpx.Client(base_url=address, headers=headers, trust_env=False, timeout=30) as client,
    ):
        yield client


def entries(audit: AuditLog) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit.path.read_bytes().splitlines()] if audit.path.exists() else []


def test_the_audit_log_says_who_asked_what_about_which_film_and_how_it_ended(http: httpx.Client, audit: AuditLog) -> None:
    film = data_uri(png_film())
    answers = [
        http.post("/v1/zero_shot", json={"images": [film, film, data_uri(png_film(1))], "labels": LABELS}),
        http.post("/v1/classify", json={"images": [film, "AAAA"], "model": ADAPTER}),
        http.post("/v1/zero_shot", json={"images": [film], "labels": []}),
        http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}], "images": film}),
        http.get("/v1/models/none"),
    ]
    found = entries(audit)
    assert [entry["request"] for entry in found] == [answer.headers["x-request-id"] for answer in answers]
    assert [entry["operation"] for entry in found] == ["zero_shot", "classify", "zero_shot", "chat", ""]
    assert [entry["status"] for entry in found] == [200, 200, 400, 200, 404]
    assert {entry["caller"] for entry in found} == {"ward"}
    assert [len(entry["studies"]) for entry in found] == [2, 1, 0, 1, 0]
    assert found[0]["studies"][0] == found[1]["studies"][0] == found[3]["studies"][0]
    digest = answers[0].json()["data"][0]["film"]["digest"]
    assert found[0]["studies"][0] == audit.study(digest) != digest[:32]
    assert found[1]["errors"] == ["film_unsupported"]
    assert found[1]["model"] == ADAPTER
    assert found[4]["errors"] == ["model_not_found"]
    assert audit.verify().is_whole


def test_health_leaves_no_trail_and_strangers_cannot_fill_the_disk(http: httpx.Client, audit: AuditLog) -> None:
    for path in ("/healthz", "/readyz"):
        assert http.get(path).status_code == 200
    for _ in range(50):
        assert http.get("/v1/models", headers={"Authorization": "Bearer no"}).status_code == 401
    (one,) = entries(audit)
    assert one["event"] == "turned away"
    assert one["counts"] == {"401 -": 1}


def test_what_was_turned_away_is_counted_to_the_last(audit: AuditLog) -> None:
    from serving.call import Call

    trail = Trail(audit)
    for _ in range(50):
        trail.ended(Call(caller="ward"), "GET", "unmatched", 429)
    trail.close()
    counts = [entry["counts"]["429 ward"] for entry in entries(audit) if "counts" in entry]
    assert sum(counts) == 50
    assert entries(audit)[-1]["event"] == "server stopped"


def test_no_patient_no_prompt_no_file_name_and_no_key_is_remembered(
    http: httpx.Client, audit: AuditLog, log_text: io.StringIO, gateway: FakeGateway
) -> None:
    name, birth, number, ward = PLANTED
    film = png_film()
    post = http.post
    post("/v1/zero_shot", files=[("file", (f"{name}.dcm", film))], data={"labels": [name, number]})
    post("/v1/zero_shot", files=[(name, (f"{name}.dcm", film))], data={"labels": LABELS})
    post("/v1/zero_shot", json={"images": [f"{name}{birth}"], "labels": [name], name: birth})
    post("/v1/zero_shot", json={"images": [f"http://{name}/"], "labels": [name]})
    post("/v1/embeddings", json={"input": [f"{name} born {birth}"], "model": number})
    messages = [{"role": "user", "content": f"Is {name} ({number}) well?"}]
    post("/v1/chat/completions", json={"messages": messages, "images": [data_uri(film)]})
    post("/v1/chat/completions", json={"messages": messages, "stream": True})
    http.get(f"/v1/models/{name}")
    http.get(f"/{name}?{number}", headers={"User-Agent": ward, "X-Request-Id": name, "X-Forwarded-For": ward})
    http.request(name, "/v1/models")
    http.delete(f"/v1/cache/{name}")

    def broken(*_: object) -> Any:
        raise RuntimeError(f"/home/{name}/{birth}.dcm")

    gateway.models = broken  # type: ignore[method-assign]
    assert http.get("/v1/models").status_code == 500
    logging.getLogger("pydicom").error("Invalid value for %s", name)
    logging.getLogger("serving.x").error("ours", exc_info=RuntimeError(name))
    metrics = http.get("/metrics", headers={"Authorization": f"Bearer {ADMIN}"}).text
    remembered = log_text.getvalue() + audit.path.read_text() + metrics
    assert len(entries(audit)) == 11  # the second that was turned away waits to be counted
    assert "RuntimeError" in log_text.getvalue()
    assert [word for word in (*PLANTED, KEY, ADMIN) if word.lower() in remembered.lower()] == []


def test_log_lines_are_json_and_carry_the_requests_id(http: httpx.Client, log_text: io.StringIO) -> None:
    answer = http.post("/v1/zero_shot", json={})
    logging.getLogger("some.library").warning("text of a film")
    lines = [json.loads(line) for line in log_text.getvalue().splitlines()]
    access = next(line for line in lines if line["logger"] == "serving.access")
    assert access["request"] == answer.headers["x-request-id"]
    assert (access["route"], access["status"], access["caller"]) == ("/v1/zero_shot", 400, "ward")
    assert lines[-1]["message"] == WITHHELD


def test_standard_error_may_be_put_elsewhere_after_the_log_was_set_up(
    log_text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", before)
    configure()
    logging.getLogger("serving.x").info("first")
    before.close()
    monkeypatch.setattr(sys, "stderr", after)
    logging.getLogger("serving.x").info("second")
    assert [json.loads(line)["message"] for line in after.getvalue().splitlines()] == ["second"]


def test_an_error_logged_below_a_request_carries_its_id(
    http: httpx.Client, log_text: io.StringIO, gateway: FakeGateway
) -> None:
    async def broken(*_: object) -> Any:
        raise RuntimeError

    gateway.decode = broken  # type: ignore[method-assign]
    answer = http.post("/v1/zero_shot", json={"images": [data_uri(png_film())] * 2, "labels": LABELS})
    assert answer.status_code == 200
    lines = [json.loads(line) for line in log_text.getvalue().splitlines()]
    unforeseen = [line["request"] for line in lines if "unforeseen" in line["message"]]
    assert unforeseen == [answer.headers["x-request-id"]] * 2


def test_what_cannot_be_remembered_is_not_answered(http: httpx.Client, audit: AuditLog) -> None:
    head = audit.path.with_suffix(".head")
    assert http.get("/v1/models").status_code == 200
    kept = head.read_bytes()
    head.write_bytes(b"made up")
    refused = http.get("/v1/models")
    assert refused.status_code == 503
    assert error_of(refused)["code"] == "audit_unavailable"
    assert http.get("/healthz").status_code == 200
    head.write_bytes(kept)
    assert http.get("/v1/models").status_code == 200
    assert audit.verify().is_whole
