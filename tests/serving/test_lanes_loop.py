"""Batches beside each other in lanes say what each request says alone, while adapters come and go; and the loop's books."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import noise_film, write_checkpoint, write_findings

from foundation.checkpoint import open_checkpoint
from serving.config import EngineConfig
from serving.engine import Engine
from serving.lanes_loop import LanesLoop
from serving.messages import Batch, ChatTurn, Outcome, Request, Sampling
from serving.scheduler import Budget, Scheduler
from serving.transport import request_to_plain

ADAPTERS = ("cxr-findings", "second", "third")
ZERO_SHOT = {"labels": ["effusion", "mass"], "templates": ["there is {}"], "negatives": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lanes")
    backbone = open_checkpoint(write_checkpoint(place / "checkpoint")).backbone
    for seed, name in enumerate(ADAPTERS):
        write_findings(place / "adapters", backbone, name, seed=seed)
    return place


def open_engine(place: Path, **options: Any) -> Engine:
    folders = {"checkpoint": str(place / "checkpoint"), "adapters_dir": str(place / "adapters")}
    return Engine.open(EngineConfig(**folders, cached_film_bytes=0, **options))


def mixed(count: int, seed: int) -> list[Request]:
    draw = random.Random(seed)
    made = []
    for number in range(1, count + 1):
        film = noise_film(draw.randrange(12))
        kind = draw.choice(("embed", "zero_shot", "classify", "classify", "classify"))
        if kind == "classify":
            made.append(Request(number, "classify", film=film, adapter=draw.choice(ADAPTERS)))
        elif kind == "zero_shot":
            made.append(Request(number, "zero_shot", film=film, options=ZERO_SHOT))
        else:
            made.append(Request(number, "embed_image", film=film))
    return made


def numbers(outcome: dict[str, Any] | Outcome) -> list[float]:
    value = outcome.value if isinstance(outcome, Outcome) else outcome["value"]
    assert value is not None, outcome
    return value.get("probabilities") or value.get("logits") or value["embeddings"][0]  # type: ignore[no-any-return]


def answered(engine: Engine, requests: list[Request], lanes: int, budget: Budget) -> dict[int, dict[str, Any]]:
    sent: list[Any] = []
    loop = LanesLoop(engine, Scheduler(budget), sent.append, lanes=lanes, lane_rows=3, cores=1)
    engine.bank.before_change = loop.wait_idle
    for request in requests:
        loop.inbox.put({"kind": "request", "request": request_to_plain(request)})
    told: dict[int, dict[str, Any]] = {}
    until = time.monotonic() + 60
    while len(told) < len(requests) and time.monotonic() < until:
        loop.step(waits=True)
        told = {one["outcome"]["request_id"]: one["outcome"] for one in sent if one["kind"] == "outcome"}
    assert len([one for one in sent if one["kind"] == "outcome"]) == len(requests)
    return told


@pytest.mark.parametrize("seed", [1, 2])
def test_lanes_say_what_each_request_says_alone(place: Path, seed: int) -> None:
    """One adapter may be resident beside those in use, so that the bank changes all the time."""
    requests = mixed(32, seed)
    alone = open_engine(place)
    truth = {request.id: numbers(alone.run(Batch((request,)))[0]) for request in requests}
    told = answered(open_engine(place, adapters=2), requests, 3, Budget(rows=6, adapters=2))
    for number, expected in truth.items():
        np.testing.assert_allclose(numbers(told[number]), expected, rtol=1e-3, atol=1e-4)


def test_a_chat_begins_after_its_film_was_seen_in_a_lane(place: Path) -> None:
    chat = Request(1, "chat", film=noise_film(3), turns=(ChatTurn("user", "is there an effusion"),), sampling=Sampling(8))
    engine = open_engine(place)
    truth = "".join((one.value or {}).get("delta", "") for one in engine.answer(chat))
    sent: list[Any] = []
    loop = LanesLoop(engine, Scheduler(Budget()), sent.append, lanes=2, lane_rows=3, cores=1)
    loop.inbox.put({"kind": "request", "request": request_to_plain(Request(9, "embed_image", film=noise_film(1)))})
    loop.inbox.put({"kind": "request", "request": request_to_plain(chat)})
    until = time.monotonic() + 60
    while not any(
        one["kind"] == "outcome" and one["outcome"]["request_id"] == 1 and one["outcome"]["is_final"] for one in sent
    ):
        assert time.monotonic() < until
        loop.step(waits=True)
    pieces = [one["outcome"] for one in sent if one["kind"] == "outcome" and one["outcome"]["request_id"] == 1]
    assert "".join((one["value"] or {}).get("delta", "") for one in pieces) == truth


@dataclass(eq=False)
class Job:
    batch: Batch
    rows: int = 1
    seconds: float = 0.0


@dataclass
class Gated:
    """An engine whose forwards end when they are let."""

    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    begun: list[list[int]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    generating: int = 0

    def run(self, batch: Batch) -> list[Outcome]:
        raise AssertionError("the loop prepares, computes and finishes")

    def generate(self) -> list[Outcome]:
        return []

    def cancel(self, request_id: int) -> bool:
        self.cancelled.append(request_id)
        return True

    def forget(self, tenant: str, study: str) -> None: ...

    def prepare(self, batch: Batch) -> Job:
        self.begun.append([request.id for request in batch.requests])
        return Job(batch)

    def compute(self, prepared: Job) -> None:
        self.gate.acquire()

    def finish(self, prepared: Job) -> list[Outcome]:
        return [Outcome(request.id, {}) for request in prepared.batch.requests]

    def use_threads(self, count: int) -> None: ...


def gated(rows: int = 2, adapters: int = 8) -> tuple[Gated, LanesLoop, list[Any]]:
    engine, sent = Gated(), list[Any]()
    scheduler = Scheduler(Budget(rows=8, adapters=adapters))
    loop = LanesLoop(engine, scheduler, sent.append, clock=lambda: 0.0, lanes=2, lane_rows=rows, cores=1)
    loop.lone.note(1, 0.1, is_wide=False)
    loop.lone.note(1, 0.2, is_wide=True)
    return engine, loop, sent


def put(loop: LanesLoop, *requests: Request) -> None:
    for request in requests:
        loop.inbox.put({"kind": "request", "request": request_to_plain(request)})


def test_what_waits_is_shared_among_free_lanes_and_the_rest_waits() -> None:
    engine, loop, sent = gated()
    put(loop, *(Request(number, "embed_image") for number in range(1, 8)))
    loop.step()
    assert engine.begun == [[1, 2], [3, 4]]
    engine.gate.release()
    loop.step(waits=True)
    assert engine.begun[2] == [5, 6]
    assert {one["outcome"]["request_id"] for one in sent if one["kind"] == "outcome"} in ({1, 2}, {3, 4})
    engine.gate.release(10)


def test_a_batch_that_had_another_beside_it_says_nothing_of_lone_ones() -> None:
    engine, loop, sent = gated()
    before = loop.lone.narrow
    for number in (1, 2):
        put(loop, Request(number, "embed_image"))
        loop.step()
    engine.gate.release(4)
    _until_answered(loop, sent, 2)
    assert loop.lone.narrow == before
    assert loop.paces.narrow.is_known
    put(loop, Request(3, "embed_image"))  # the first alone again
    _until_answered(loop, sent, 3)
    assert loop.lone.narrow == before
    put(loop, Request(4, "embed_image"))
    _until_answered(loop, sent, 4)
    assert loop.lone.narrow != before


def _until_answered(loop: LanesLoop, sent: list[Any], count: int) -> None:
    while sum(one["kind"] == "outcome" for one in sent) < count:
        loop.step(waits=True)


def test_one_that_is_withdrawn_under_way_is_cancelled_when_it_ends() -> None:
    engine, loop, _ = gated()
    put(loop, Request(1, "chat"), Request(2, "embed_image"))
    loop.step()
    loop.inbox.put({"kind": "cancel", "id": 1})
    loop.step()
    assert engine.cancelled == []
    engine.gate.release(2)
    while not engine.cancelled:
        loop.step(waits=True)
    assert engine.cancelled == [1]


def test_adapters_under_way_count_and_nobody_overtakes_who_waits_for_them() -> None:
    engine, loop, _ = gated(rows=8, adapters=1)
    asks = [Request(number, "classify", adapter=name) for number, name in enumerate("aba", 1)]
    put(loop, asks[0])
    put(loop, Request(9, "embed_text", texts=("x",)))
    loop.step()
    put(loop, *asks[1:], replace(asks[0], id=4))
    before = len(engine.begun)
    loop.step()
    begun_with_a = {number for batch in engine.begun[:before] for number in batch}
    assert begun_with_a == {1, 9}
    assert 2 not in {number for batch in engine.begun for number in batch}
    engine.gate.release(20)
    until = time.monotonic() + 10
    while not any(2 in batch for batch in engine.begun):
        assert time.monotonic() < until
        loop.step(waits=True)
    assert not any(1 in batch and 2 in batch for batch in engine.begun)
