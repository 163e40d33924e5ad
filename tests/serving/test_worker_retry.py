"""A request lost with its engine is asked once more, alone; one that kills every engine takes no other with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from serving.config import EngineConfig, ServerConfig
from serving.engine_link import EngineLink
from serving.gateway import next_request_id
from serving.messages import Outcome, Request
from serving.worker import Worker


@pytest.fixture(autouse=True)
def _find_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def with_worker(body: Callable[[Worker], Awaitable[None]], restart_patience_s: float = 20.0) -> None:
    async def run() -> None:
        config = ServerConfig(engine=EngineConfig(checkpoint="fake"), restart_patience_s=restart_patience_s)
        link = EngineLink(config.engine, module="fake_engine_process")
        worker = Worker(config, link)
        await link.start()
        try:
            await body(worker)
        finally:
            await link.close()

    asyncio.run(asyncio.wait_for(run(), 120))


def ask(worker: Worker, what: str, limit_s: float = 60.0) -> asyncio.Task[Outcome]:
    request = Request(next_request_id(), "embed_text", texts=(what,), deadline=time.monotonic() + limit_s)
    return asyncio.create_task(worker.ask(request))


def test_a_killed_engine_costs_its_requests_nothing_but_time() -> None:
    async def body(worker: Worker) -> None:
        waiting = ask(worker, "slow")
        while not len(worker.link):
            await asyncio.sleep(0.01)
        running = worker.link._running
        assert running is not None
        running.process.kill()
        found = await waiting
        assert found.value is not None
        assert found.value["echo"] == "slow"
        assert worker.link.restarts == 1

    with_worker(body)


def test_a_request_that_kills_every_engine_fails_alone() -> None:
    async def body(worker: Worker) -> None:
        neighbours = [ask(worker, "slow") for _ in range(3)]
        await asyncio.sleep(0.05)
        poison = ask(worker, "die")
        later = [ask(worker, f"later {number}") for number in range(3)]
        assert (await poison).error_code == "engine_unavailable"
        found = await asyncio.gather(*neighbours, *later)
        assert [outcome.value and outcome.value["echo"] for outcome in found] == ["slow"] * 3 + [f"later {n}" for n in range(3)]
        assert worker.link.restarts == 2
        assert not (await ask(worker, "after")).is_error

    with_worker(body)


def test_a_stream_that_has_begun_is_not_begun_again() -> None:
    async def body(worker: Worker) -> None:
        request = Request(next_request_id(), "chat", texts=("stream and die",))
        pieces = [piece async for piece in worker.stream(request)]
        assert [piece.is_error for piece in pieces] == [False, False, True]
        assert pieces[-1].error_code == "engine_unavailable"

    with_worker(body)


def test_who_is_not_patient_is_told_at_once() -> None:
    async def body(worker: Worker) -> None:
        assert (await ask(worker, "die")).error_code == "engine_unavailable"
        started = time.monotonic()
        while worker.link.is_up:
            await asyncio.sleep(0.01)
        assert (await ask(worker, "early", limit_s=0.1)).error_code == "engine_unavailable"
        assert time.monotonic() - started < 5

    with_worker(body, restart_patience_s=0.0)
