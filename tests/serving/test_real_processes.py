"""The whole server with real processes over a tiny checkpoint, while they are killed, stopped, left and told to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from live_api import data_uri, error_of, png_film, wait_until
from server_process import BODY, address_of, children, metric, run_serve, score, send_to_all, stopped
from tiny import write_checkpoint

from serving.audit import AuditLog
from serving.config import EngineConfig, ServerConfig
from serving.keys import KeyFile
from serving.server import background


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("real") / "tiny")


@pytest.fixture(scope="module")
def http(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    config = ServerConfig(
        port=0,
        engine=EngineConfig(checkpoint=str(checkpoint), threads=1),
        home=str(tmp_path_factory.mktemp("home")),
        canary_interval_s=0.5,
        restart_patience_s=100.0,
    )
    with background(config) as url, httpx.Client(base_url=url, timeout=200, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("module", ["serving.engine_process", "serving.decode_process"])
def test_a_killed_process_costs_no_answer(http: httpx.Client, module: str) -> None:
    truth = [score(http, seed).json()["data"][0]["scores"] for seed in range(3)]
    before = children(module)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(score, http, number % 3) for number in range(24)]
        for process in before:
            os.kill(process, signal.SIGKILL)
        answers = [one.result() for one in waiting]
    assert [answer.status_code for answer in answers] == [200] * 24
    for number, answer in enumerate(answers):
        given = [one["score"] for one in answer.json()["data"][0]["scores"]]
        assert given == pytest.approx([one["score"] for one in truth[number % 3]], abs=1e-4)
    wait_until(lambda: len(children(module)) == len(before), seconds=120)
    assert not set(children(module)) & set(before)
    assert score(http, 99).status_code == 200


def test_a_deadline_is_kept_while_the_engine_does_nothing(http: httpx.Client) -> None:
    (engine,) = children("serving.engine_process")
    with stopped(engine):
        late = score(http, 1000, **{"X-Deadline-Ms": "300"})
        assert late.status_code == 504
        assert error_of(late)["code"] == "deadline_exceeded"
        assert late.elapsed.total_seconds() < 20
    assert score(http, 1001, **{"X-Deadline-Ms": "60000"}).status_code == 200


def test_who_leaves_frees_the_place(http: httpx.Client) -> None:
    (engine,) = children("serving.engine_process")
    content = json.dumps({**BODY, "images": data_uri(png_film(2000))}).encode()
    head = f"POST /v1/zero_shot HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    address = ("127.0.0.1", int(http.base_url.port or 0))
    wait_until(lambda: metric(http, "vesalius_requests_in_flight") == 1)  # the question itself
    with stopped(engine):
        callers = [socket.create_connection(address) for _ in range(5)]
        for caller in callers:
            caller.sendall(f"{head}\r\n\r\n".encode() + content)
        wait_until(lambda: metric(http, "vesalius_queue_length") >= 5)
        for caller in callers:
            caller.close()
        wait_until(lambda: metric(http, "vesalius_requests_in_flight") == 1, seconds=20)
        wait_until(lambda: metric(http, "vesalius_queue_length") <= 1, seconds=20)  # a canary may wait
    assert score(http, 2001).status_code == 200


def test_readiness_follows_a_real_forward(http: httpx.Client) -> None:
    wait_until(lambda: http.get("/readyz").status_code == 200)
    (engine,) = children("serving.engine_process")
    with stopped(engine):
        wait_until(lambda: http.get("/readyz").status_code == 503, seconds=60)
        assert "finished nothing" in http.get("/readyz").json()["reason"]
        assert http.get("/healthz").status_code == 200
    wait_until(lambda: http.get("/readyz").status_code == 200, seconds=60)
    assert http.get("/readyz").json()["last_forward_age_s"] < 20


def test_sigterm_lets_what_runs_finish_then_ends_everything(checkpoint: Path, tmp_path: Path) -> None:
    server = run_serve(checkpoint, tmp_path)
    try:
        url = address_of(server)
        mine = [*children("serving.engine_process", server.pid), *children("serving.decode_process", server.pid)]
        assert len(mine) == 3
        answers: list[httpx.Response] = []
        (engine,) = children("serving.engine_process", server.pid)
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            with stopped(engine):
                asking = threading.Thread(target=lambda: answers.append(score(http, 1)))
                asking.start()
                wait_until(lambda: metric_of(url, "vesalius_queue_length") >= 1)
                send_to_all(signal.SIGTERM, server.pid, *mine)
                time.sleep(0.5)
                with pytest.raises(httpx.TransportError):
                    httpx.get(f"{url}/healthz", trust_env=False)
            asking.join(60)
        assert [answer.status_code for answer in answers] == [200]
        assert server.wait(60) == 0
        assert not [process for process in mine if Path(f"/proc/{process}").exists()]
    finally:
        server.kill()
        _, said = server.communicate()
    assert "was lost" not in said  # neither engine nor decoder, although all were sent the signal
    log = AuditLog(tmp_path)
    assert log.verify().is_whole
    entries = [json.loads(line) for line in log.path.read_bytes().splitlines()]
    assert [entries[0]["event"], entries[-1]["event"]] == ["server started", "server stopped"]
    assert [entry["operation"] for entry in entries if "operation" in entry] == ["zero_shot"]


def metric_of(url: str, name: str) -> float:
    with httpx.Client(base_url=url, trust_env=False) as http:
        return metric(http, name)


def test_an_open_address_without_a_key_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    server = run_serve(checkpoint, tmp_path, "--host", "0.0.0.0")
    _, said = server.communicate(timeout=200)
    assert server.returncode == 2
    assert "vesalius keys add NAME" in said
    assert "Traceback" not in said


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with the openssl command")
def test_an_open_address_with_a_key_and_tls(checkpoint: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-days", "2"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate), *subject]
    subprocess.run(made, check=True, capture_output=True)
    _, secret = KeyFile(tmp_path / "keys.json").add("ward", ("infer",))
    server = run_serve(checkpoint, tmp_path, "--host", "0.0.0.0", "--tls-certificate", str(certificate), "--tls-key", str(key))
    try:
        url = address_of(server).replace("0.0.0.0", "127.0.0.1")
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=url, verify=trusted, headers=headers, timeout=60, trust_env=False) as http:
            assert score(http, 1).status_code == 200
            assert http.get("/v1/models", headers={"Authorization": ""}).status_code == 401
            assert http.get("/metrics").status_code == 403
            KeyFile(tmp_path / "keys.json").revoke("ward")
            assert http.get("/v1/models").status_code == 401
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https://", "http://"), trust_env=False)
    finally:
        server.kill()
        server.communicate()
