"""The link to an engine process: answers find who asked, a lost engine is told and replaced, leaving withdraws."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from server_process import children

from foundation.errors import CheckpointRefused, EngineUnavailable
from serving.config import EngineConfig
from serving.engine_link import EngineLink
from serving.event_loop import run_loop
from serving.messages import Outcome, Request, Sampling
from serving.transport import AsyncChannel


@pytest.fixture(autouse=True)
def _find_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def with_link(body: Callable[[EngineLink], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        link = EngineLink(EngineConfig(checkpoint="fake"), module="fake_engine_process", **options)
        await link.start()
        try:
            await body(link)
        finally:
            await link.close()

    asyncio.run(asyncio.wait_for(run(), 120))


async def ask(link: EngineLink, number: int, what: str) -> Outcome:
    answers = await link.ask(Request(number, "embed_text", texts=(what,)))
    try:
        return await answers.get()
    finally:
        link.release(answers)


def test_answers_find_who_asked() -> None:
    async def body(link: EngineLink) -> None:
        found = await asyncio.gather(*(ask(link, number, f"text {number}") for number in range(20)))
        assert [outcome.value and outcome.value["echo"] for outcome in found] == [f"text {n}" for n in range(20)]
        assert len(link) == 0
        pieces = await link.ask(Request(99, "chat", texts=("stream",)))
        assert [(await pieces.get()).is_final for _ in range(3)] == [False, False, True]

    with_link(body)


@pytest.mark.parametrize(("what", "limit_s"), [("die", 60.0), ("hang", 1.0)])
def test_a_lost_engine_is_told_and_replaced(what: str, limit_s: float) -> None:
    async def body(link: EngineLink) -> None:
        silent = asyncio.create_task(ask(link, 1, "silence"))
        await asyncio.sleep(0.05)
        lost = await ask(link, 2, what)
        assert lost.error_code == (await silent).error_code == "engine_unavailable"
        while not link.is_up:
            assert (await ask(link, 3, "early")).error_code == "engine_unavailable"
            await asyncio.sleep(0.05)
        again = await ask(link, 4, "again")
        assert again.value is not None
        assert again.value["echo"] == "again"
        assert link.restarts == 1

    with_link(body, hang_limit_s=limit_s)


def test_who_leaves_is_withdrawn() -> None:
    async def body(link: EngineLink) -> None:
        leaving = asyncio.create_task(ask(link, 7, "silence"))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        after = await ask(link, 8, "after")
        assert after.value is not None
        assert after.value["cancelled"] == [7]

    with_link(body)


@pytest.mark.parametrize(("module", "function"), [(asyncio, "create_subprocess_exec"), (socket, "socketpair")])
def test_a_machine_that_starts_no_process_for_a_moment_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    real, refused = getattr(module, function), []

    def once_refused(*arguments: Any, **options: Any) -> Any:
        if not refused:
            refused.append(arguments)
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(*arguments, **options)

    async def body(link: EngineLink) -> None:
        monkeypatch.setattr(module, function, once_refused)
        assert (await ask(link, 1, "die")).error_code == "engine_unavailable"
        assert await link.wait_up(60.0)
        assert len(refused) == 1
        assert not (await ask(link, 2, "again")).is_error

    with_link(body)


def test_half_a_character_is_refused_by_a_sentence() -> None:
    async def body(link: EngineLink) -> None:
        assert (await ask(link, 1, "\ud800")).error_code == "invalid_request"
        assert not (await ask(link, 2, "whole")).is_error

    with_link(body)


def test_a_number_too_large_for_the_wire_is_refused_by_a_sentence() -> None:
    async def body(link: EngineLink) -> None:
        answers = await link.ask(Request(1, "chat", texts=("a",), sampling=Sampling(seed=1 << 70)))
        assert (await answers.get()).error_code == "invalid_request"
        assert len(link) == 0
        assert not (await ask(link, 2, "small")).is_error

    with_link(body)


def test_a_request_that_cannot_be_sent_at_all_waits_for_nothing() -> None:
    async def body(link: EngineLink) -> None:
        with pytest.raises(TypeError):
            await link.ask(Request(1, "embed_text", texts=("a",), options={"odd": object()}))
        assert len(link) == 0

    with_link(body)


def held() -> set[str]:
    """What a launch takes: sockets, and processes of the fake."""
    found = {f"process {number}" for number in children("fake_engine_process")}
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(str(handle.readlink()))
    return {one for one in found if one.startswith(("process", "socket"))}


async def starting(link: EngineLink) -> asyncio.Task[None]:
    task = asyncio.create_task(link.start())
    while not children("fake_engine_process"):
        await asyncio.sleep(0.01)
    return task


@pytest.mark.parametrize("run", [asyncio.run, run_loop])
def test_a_cancelled_start_leaves_nothing_behind(run: Callable[[Any], None]) -> None:
    async def body() -> None:
        before = held()
        link = EngineLink(EngineConfig(checkpoint="deaf"), module="fake_engine_process")
        task = await starting(link)
        assert len(held() - before) >= 2  # the process and its socket
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert held() == before
        await link.close()

    run(asyncio.wait_for(body(), 60))


def test_a_start_cancelled_before_it_has_a_channel_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(connection: socket.socket) -> AsyncChannel:
        await asyncio.sleep(60)
        raise AssertionError("unreachable")

    async def body() -> None:
        before = held()
        link = EngineLink(EngineConfig(checkpoint="deaf"), module="fake_engine_process")
        monkeypatch.setattr(AsyncChannel, "over", never)
        task = await starting(link)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert held() == before
        await link.close()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_a_link_closed_while_it_starts_another_engine_leaves_nothing_behind() -> None:
    async def body() -> None:
        before = held()
        link = EngineLink(EngineConfig(checkpoint="fake"), module="fake_engine_process")
        await link.start()
        first = children("fake_engine_process")
        link.config = EngineConfig(checkpoint="deaf")
        assert (await ask(link, 1, "die")).error_code == "engine_unavailable"
        while children("fake_engine_process") in ([], first):
            await asyncio.sleep(0.01)
        await link.close()
        await asyncio.sleep(0)
        assert held() == before

    asyncio.run(asyncio.wait_for(body(), 60))


@pytest.mark.parametrize(("name", "error"), [("refused", CheckpointRefused), ("odd", KeyError), ("deaf", EngineUnavailable)])
def test_a_start_that_fails_leaves_nothing_behind(name: str, error: type[Exception]) -> None:
    async def body() -> None:
        before = held()
        link = EngineLink(EngineConfig(checkpoint=name), module="fake_engine_process", start_limit_s=2.0)
        with pytest.raises(error):
            await link.start()
        await asyncio.sleep(0)
        assert held() == before
        await link.close()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_why_it_cannot_start_is_said() -> None:
    async def body() -> None:
        link = EngineLink(EngineConfig(checkpoint="refused"), module="fake_engine_process")
        with pytest.raises(CheckpointRefused, match="pickle"):
            await link.start()
        await link.close()

    asyncio.run(body())
