"""Ray Serve: what stands around a replica's app, what is refused, and (with ray, when asked) a real cluster of one machine."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_api import png_film
from starlette.testclient import TestClient
from tiny import write_checkpoint, write_findings

from app.cli import build_parser, main
from app.cluster_options import cluster_config
from foundation.checkpoint import open_checkpoint
from foundation.errors import EngineUnavailable, InvalidRequest
from serving.api.app import create_app
from serving.cluster import ClusterConfig, Replica, serve_cluster
from serving.config import EngineConfig, ServerConfig
from serving.fake import FakeGateway
from serving.server import background

HOUSE = Path(__file__).resolve().parents[2]
ASKED = "VESALIUS_TEST_RAY"
HEADER = "serve_multiplexed_model_id"


class Noted:
    """Ray's part: which adapter the request's header names, and what was noted of it."""

    def __init__(self, asked_for: str = "") -> None:
        self.asked_for, self.held = asked_for, list[str]()

    def replica(self, *, is_alone: bool = True) -> Replica:
        return Replica(create_app(FakeGateway()), lambda: self.asked_for, self._hold, is_alone=is_alone)

    async def _hold(self, adapter: str) -> str:
        self.held.append(adapter)
        return adapter


def client(replica: Replica) -> TestClient:
    return TestClient(replica, base_url="http://127.0.0.1")


def an_adapter() -> str:
    return next(model.name for model in FakeGateway().models() if model.kind == "adapter")


def test_a_known_adapter_is_noted_and_the_app_answers() -> None:
    noted = Noted(an_adapter())
    assert client(noted.replica()).get("/v1/models").status_code == 200
    assert noted.held == [an_adapter()]


@pytest.mark.parametrize("named", ["", "no-such-adapter"])
def test_what_is_no_adapter_is_not_noted(named: str) -> None:
    noted = Noted(named)
    assert client(noted.replica()).get("/v1/models").status_code == 200
    assert noted.held == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/adapters/a"),
        ("DELETE", "/v1/adapters/a"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("DELETE", "/v1/cache"),
        ("DELETE", "/v1/cache/0"),
    ],
)
def test_one_of_several_replicas_does_not_answer_for_all(method: str, path: str) -> None:
    answer = client(Noted().replica(is_alone=False)).request(method, path, json={})
    assert answer.status_code == 400
    assert "several replicas" in answer.json()["error"]["message"]


def test_a_replica_alone_forgets_what_it_is_told_to() -> None:
    answer = client(Noted().replica()).delete("/v1/cache")
    assert "several replicas" not in answer.text
    assert answer.is_success


def test_a_replica_whose_engine_is_gone_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Noted().replica()
    replica.check()
    gateway = replica._app.state.service.gateway
    ready = gateway.readiness()
    monkeypatch.setattr(gateway, "readiness", lambda: type(ready)(False, reason="The engine is away."))
    with pytest.raises(EngineUnavailable, match="away"):
        replica.check()


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"resident": 0}, {"replica_cpus": -1}, {"replica_gpus": -0.5}])
def test_a_wrong_number_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ClusterConfig(**wrong)
    assert refused.value.param == next(iter(wrong))


def test_cores_are_divided_between_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [ClusterConfig(replicas=count).cpus for count in (1, 3, 16)] == [8, 2, 1]
    assert ClusterConfig(replicas=2, replica_cpus=3).cpus == 3


def test_options_of_a_cluster_need_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--replicas", "2"]) == 2
    assert "--cluster" in capsys.readouterr().err
    chosen = build_parser().parse_args(["serve", "--cluster", "--replicas", "2", "--replica-gpus", "0.5"])
    assert cluster_config(chosen) == ClusterConfig(replicas=2, replica_gpus=0.5)
    assert cluster_config(build_parser().parse_args(["serve"])) is None


def test_without_ray_it_says_what_to_install(without_ray: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="pip install"):
        serve_cluster(ServerConfig(port=0, home=str(tmp_path)), ClusterConfig())


def test_a_ray_of_our_own_is_told_to_ask_for_a_token_before_it_is_imported(without_ray: dict[str, str], tmp_path: Path) -> None:
    """Set after the import it holds for Ray's children and not for this process, which then cannot speak to them."""
    with pytest.raises(InvalidRequest):
        serve_cluster(ServerConfig(port=0, home=str(tmp_path)), ClusterConfig())
    assert without_ray["RAY_AUTH_MODE"] == "token"
    assert without_ray["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # or it would listen where others reach it


@pytest.mark.parametrize("said", [{"RAY_ADDRESS": "10.0.0.1:6379"}, {"RAY_AUTH_MODE": "disabled"}])
def test_what_the_operator_said_of_ray_stands(without_ray: dict[str, str], said: dict[str, str], tmp_path: Path) -> None:
    without_ray.update(said)
    with pytest.raises(InvalidRequest):
        serve_cluster(ServerConfig(port=0, home=str(tmp_path)), ClusterConfig())
    assert without_ray.get("RAY_AUTH_MODE") == said.get("RAY_AUTH_MODE")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Ray cannot be imported; returns the environment of this process, free of Ray's variables."""
    monkeypatch.setitem(sys.modules, "ray", None)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    monkeypatch.setattr(os, "environ", environment)
    return environment


def test_an_open_address_without_a_key_is_refused_before_ray_is_started(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="API key"):
        serve_cluster(ServerConfig(host="0.0.0.0", port=0, home=str(tmp_path)), ClusterConfig())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'vesalius[ray]'")
@pytest.mark.skipif(ASKED not in os.environ, reason=f"takes minutes and a gigabyte: set {ASKED}=1")
def test_a_cluster_answers_as_the_plain_server_does(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "tiny")
    write_findings(tmp_path / "adapters", open_checkpoint(checkpoint).backbone)
    film = {"file": ("film.png", png_film(0), "image/png")}
    config = EngineConfig(checkpoint=str(checkpoint), adapters_dir=str(tmp_path / "adapters"), threads=1)
    with background(ServerConfig(port=0, home=str(tmp_path / "plain"), engine=config)) as url:
        adapter = next(model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"] if model["id"] != "tiny")
        plain = httpx.post(f"{url}/v1/embeddings", files=film, timeout=60).json()["data"][0]["embedding"]
    with running_cluster(tmp_path) as url:
        answer = httpx.post(f"{url}/v1/embeddings", files=film, headers={HEADER: adapter}, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["data"][0]["embedding"] == pytest.approx(plain, abs=1e-5)
        assert httpx.get(f"{url}/v1/models", headers={"Host": "a.example"}).status_code == 401


@contextmanager
def running_cluster(home: Path) -> Iterator[str]:
    """`vesalius serve --cluster` on a free port, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = ["--checkpoint", str(home / "tiny"), "--adapters", str(home / "adapters"), "--port", str(port)]
    token = {"RAY_AUTH_TOKEN": "0" * 64, "VESALIUS_HOME": str(home / "cluster"), "PYTHONPATH": str(HOUSE)}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve", "--cluster", *options],
        cwd=HOUSE, env={**os.environ, **token}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    begun = time.monotonic()
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "listens on" in line), "")
        assert line, "the cluster did not start"
        print(json.dumps({"started_s": round(time.monotonic() - begun, 1)}))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
