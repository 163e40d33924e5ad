"""`vesalius serve --workers 2` over a tiny checkpoint: one server to its callers, whichever front answers or dies."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_api import data_uri, png_film, wait_until
from server_process import BODY, address_of, children, run_serve, score, send_to_all, stopped
from tiny import write_checkpoint, write_findings

from foundation.checkpoint import open_checkpoint
from foundation.errors import EngineUnavailable, InvalidRequest
from serving.audit import AuditLog
from serving.config import DecodeConfig, EngineConfig, ServerConfig, TlsConfig
from serving.decode_process import decode
from serving.engine import Engine
from serving.fronts import Fronts
from serving.keys import KeyFile
from serving.messages import Batch, RawFilm, Request
from serving.server import background

WORKERS = (1, 2)


@dataclass
class Place:
    """Where the server of these tests has its files, and who may ask it."""

    checkpoint: Path
    adapters: Path
    home: Path
    keys: dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("fronts")
    write_findings(folder / "adapters", open_checkpoint(write_checkpoint(folder / "tiny")).backbone)
    file = KeyFile(folder / "keys.json")
    keys = {"all": file.add("all", ("infer", "admin"), 0)[1], "slow": file.add("slow", ("infer",), 4)[1]}
    keys["leaver"] = file.add("leaver", ("infer",), 0)[1]
    return Place(folder / "tiny", folder / "adapters", folder, keys)


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the server and its processes have logged."""
    return []


@pytest.fixture(scope="module")
def server(place: Place, said: list[str]) -> Iterator[subprocess.Popen[str]]:
    server = run_serve(place.checkpoint, place.home, "--adapters", str(place.adapters), "--workers", "2")
    threading.Thread(target=lambda: said.extend(server.stderr or ()), daemon=True).start()  # so that it never fills
    try:
        yield server
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def url(server: subprocess.Popen[str]) -> str:
    return address_of(server)


@contextmanager
def fronts(url: str, key: str) -> Iterator[dict[int, httpx.Client]]:
    """A connection to each front, by its number: connections are given to one after the other."""
    headers = {"Authorization": f"Bearer {key}"}
    clients = [httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) for _ in WORKERS]
    try:
        yield {client.get("/healthz").json()["worker"]: client for client in clients}
    finally:
        for client in clients:
            client.close()


def test_connections_reach_both_fronts_and_answers_are_those_of_the_model(url: str, place: Place) -> None:
    """As those of one front are, see test_server.py."""
    engine = Engine.open(EngineConfig(checkpoint=str(place.checkpoint), threads=1))
    options = {**BODY, "negatives": None, "scoring": "softmax"}
    truth = []
    for seed in range(3):
        film = decode(RawFilm(png_film(seed)), engine.backbone.contract)
        (outcome,) = engine.run(Batch((Request(1, "zero_shot", film=film, options=options),)))
        truth.append((outcome.value or {})["scores"])
    with fronts(url, place.keys["all"]) as found:
        assert set(found) == set(WORKERS)
        for http in found.values():
            assert http.get("/readyz").json()["ready"]
            for seed in range(3):
                assert scores(http, seed) == pytest.approx(truth[seed], abs=1e-4)


def scores(http: httpx.Client, seed: int) -> list[float]:
    return [one["score"] for one in score(http, seed).json()["data"][0]["scores"]]


def test_metrics_are_those_of_the_whole_server(url: str, place: Place) -> None:
    with fronts(url, place.keys["all"]) as found:
        before = counted(found[1])
        for http in found.values():
            http.get("/v1/models")
        assert counted(found[1]) == counted(found[2]) == before + 2


def counted(http: httpx.Client) -> float:
    wanted = 'vesalius_requests_total{method="GET",route="/v1/models",status="200"}'
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(wanted)]
    assert len(lines) < 2
    return float(lines[0].split()[-1]) if lines else 0.0


def test_a_rate_holds_in_sum(url: str, place: Place) -> None:
    with fronts(url, place.keys["slow"]) as found:
        statuses = [found[number].get("/v1/models").status_code for number in (1, 2, 1, 2)]
    assert statuses == [200, 429, 429, 429]


def test_adapters_and_keys_change_for_all_fronts_at_once(url: str, place: Place) -> None:
    with fronts(url, place.keys["all"]) as found:
        for here, there in ((1, 2), (2, 1)):
            assert names(found[there]) == {"tiny", "cxr-findings"}
            assert found[here].delete("/v1/adapters/cxr-findings").status_code == 200
            assert names(found[there]) == {"tiny"}
            answer = found[there].post("/v1/classify", json={"model": "cxr-findings", "images": data_uri(png_film(1))})
            assert answer.status_code == 404
            assert found[here].post("/v1/adapters/cxr-findings").status_code == 200
        assert found[1].delete("/v1/cache").status_code == 204
    with fronts(url, place.keys["leaver"]) as found:
        assert [http.get("/v1/models").status_code for http in found.values()] == [200, 200]
        KeyFile(place.home / "keys.json").revoke("leaver")
        assert [http.get("/v1/models").status_code for http in found.values()] == [401, 401]


def names(http: httpx.Client) -> set[str]:
    return {model["id"] for model in http.get("/v1/models").json()["data"]} & {"tiny", "cxr-findings"}


def test_a_front_that_dies_takes_no_other_with_it_and_is_replaced(
    url: str, place: Place, server: subprocess.Popen[str]
) -> None:
    statuses: dict[int, list[int]] = {number: [] for number in WORKERS}
    lost: list[int] = []
    is_over = threading.Event()

    def ask(number: int, http: httpx.Client) -> None:
        try:
            while not is_over.is_set():
                statuses[number].append(score(http, len(statuses[number])).status_code)
        except httpx.TransportError:
            lost.append(number)

    with fronts(url, place.keys["all"]) as found:
        before = counted(found[1])
        asking = [threading.Thread(target=ask, args=one) for one in found.items()]
        for thread in asking:
            thread.start()
        wait_until(lambda: all(len(one) > 2 for one in statuses.values()))
        victim = children("serving.front_process", server.pid)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(lost) == 1)
        other = 3 - lost[0]
        seen = len(statuses[other])
        wait_until(lambda: reached(url, place) == {other})
        wait_until(lambda: reached(url, place) == set(WORKERS), seconds=120)
        wait_until(lambda: len(statuses[other]) > seen + 2)
        is_over.set()
        for thread in asking:
            thread.join(60)
        assert lost == [3 - other]
        assert set(statuses[1] + statuses[2]) == {200}
    with fronts(url, place.keys["all"]) as found:
        assert scores(found[1], 1) == pytest.approx(scores(found[2], 1), abs=1e-4)
        assert counted(found[1]) >= before  # what was counted by the one that was lost remains
    assert victim not in children("serving.front_process", server.pid)


def reached(url: str, place: Place) -> set[int]:
    """The fronts that new connections come to; none where one still came to a front that is just dying."""
    try:
        with fronts(url, place.keys["all"]) as found:
            return set(found)
    except httpx.TransportError:
        return set()


def waiting(url: str, place: Place) -> int:
    with fronts(url, place.keys["all"]) as found:
        return min(http.get("/readyz").json()["queue_length"] for http in found.values())


def test_sigterm_drains_every_front_and_the_log_is_one_chain(
    url: str, place: Place, server: subprocess.Popen[str], said: list[str]
) -> None:
    """Also where all of the server's processes are sent it: who serves the fronts stays until they have finished."""
    modules = ("serving.front_process", "serving.engine_process")
    parents = [server.pid, *children("serving.front_process", server.pid)]
    mine = [process for module in modules for process in children(module, server.pid)]
    mine += [process for parent in parents for process in children("serving.decode_process", parent)]
    assert len(mine) == 2 + 1 + 4
    (engine,) = children("serving.engine_process", server.pid)
    answers: list[httpx.Response] = []
    with fronts(url, place.keys["all"]) as found:
        with stopped(engine):
            asking = [
                threading.Thread(target=lambda http=http: answers.append(score(http, 900)))  # type: ignore[misc]
                for http in found.values()
            ]
            for thread in asking:
                thread.start()
            wait_until(lambda: waiting(url, place) >= 2)
            send_to_all(signal.SIGTERM, server.pid, *mine)
            time.sleep(0.5)
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{url}/healthz", trust_env=False)
        for thread in asking:
            thread.join(60)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert server.wait(60) == 0
    assert not [process for process in mine if Path(f"/proc/{process}").exists()]
    assert not [line for line in said if "the engine was lost" in line or "a decoder was lost" in line]
    log = AuditLog(place.home)
    assert log.verify().is_whole
    entries = [json.loads(line) for line in log.path.read_bytes().splitlines()]
    events = [entry["event"] for entry in entries if "event" in entry]
    assert (events[0], events[-1]) == ("server started", "server stopped")
    (lost,) = [event for event in events if "lost" in event]
    assert events.count(f"{lost.removeprefix('server lost ')} started") == 2
    assert sum(event.endswith("started") for event in events) == 1 + 2 + 1
    assert events.count("worker 1 stopped") == events.count("worker 2 stopped") == 1


def test_several_fronts_serve_on_a_thread(place: Place) -> None:
    """As `vesalius up --workers 2` has them."""
    engine = EngineConfig(checkpoint=str(place.checkpoint), adapters_dir=str(place.adapters), threads=1)
    decode_config = DecodeConfig(processes=1)
    with (
        background(ServerConfig(port=0, home=str(place.home), engine=engine, decode=decode_config, workers=2)) as url,
        fronts(url, place.keys["all"]) as found,
    ):
        assert set(found) == set(WORKERS)
        mine = [process for module in ("front", "engine") for process in children(f"serving.{module}_process")]
        assert len(mine) == 3
    assert not [process for process in mine if Path(f"/proc/{process}").exists()]


@pytest.mark.parametrize(("module", "function"), [(socket, "socketpair"), (os, "memfd_create")])
def test_a_front_for_which_there_is_no_open_file_is_refused_so_that_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def hire() -> None:
        nobody: Any = None
        fronts = Fronts(ServerConfig(workers=2), nobody, nobody, nobody, "")
        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(module, function, refuse)
            with pytest.raises(EngineUnavailable, match=os.strerror(errno.EMFILE)):
                await fronts._hire(1)
        assert len(os.listdir("/proc/self/fd")) == before
        fronts._ledger.close()

    asyncio.run(hire())


def test_a_number_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="workers is 0"):
        ServerConfig(workers=0)


def test_a_config_is_the_same_behind_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import asdict

    import msgpack

    from serving.chat_backend import ChatBackend

    monkeypatch.setattr(TlsConfig, "__post_init__", lambda self: None)
    config = ServerConfig(
        api_key="k" * 20,
        tls=TlsConfig("cert", "key"),
        engine=EngineConfig(unloaded=("a", "b")),
        decode=DecodeConfig(processes=3),
        chat_backend=ChatBackend("http://127.0.0.1:1/v1", "m", "secret"),
        devices=("cpu", "cpu"),
        workers=3,
    )
    for one in (config, ServerConfig()):
        assert ServerConfig.from_plain(msgpack.unpackb(msgpack.packb(asdict(one)))) == one
