"""Several engines behind one link: the least loaded answers, films and adapters stay where they are known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import serving.fleet as fleet_module
from foundation.errors import InvalidRequest
from serving.config import EngineConfig, ServerConfig
from serving.engine_link import EngineLink
from serving.fleet import Fleet
from serving.http_errors import InternalError
from serving.messages import Film, Outcome, Request


@pytest.fixture(autouse=True)
def _find_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def with_fleet(body: Callable[[Fleet, list[EngineLink]], Awaitable[None]], count: int = 2) -> None:
    async def run() -> None:
        links = [EngineLink(EngineConfig(checkpoint="fake"), module="fake_engine_process") for _ in range(count)]
        fleet = Fleet(links)
        await fleet.start()
        try:
            await body(fleet, links)
        finally:
            await fleet.close()

    asyncio.run(asyncio.wait_for(run(), 120))


def request(number: int, what: str = "silence", film: int = 0, adapter: str | None = None) -> Request:
    seen = Film(np.zeros((2, 2, 3), np.uint8), digest=f"{film:064x}") if film else None
    return Request(number, "classify" if adapter else "embed_text", texts=(what,), film=seen, adapter=adapter)


async def answered(fleet: Fleet, one: Request) -> Outcome:
    answers = await fleet.ask(one)
    try:
        return await answers.get()
    finally:
        fleet.release(answers)


def test_work_is_spread_and_a_release_is_heard_where_the_request_went() -> None:
    async def body(fleet: Fleet, links: list[EngineLink]) -> None:
        under_way = [await fleet.ask(request(number)) for number in range(1, 7)]
        assert [len(link) for link in links] == [3, 3]
        for answers in under_way:
            fleet.release(answers)
        assert len(fleet) == 0
        told = []
        for number, link in enumerate(links):
            answers = await link.ask(request(20 + number, "echo"))
            told.append((await answers.get()).value)
            link.release(answers)
        assert sorted(number for value in told for number in (value or {})["cancelled"]) == [1, 2, 3, 4, 5, 6]

    with_fleet(body)


def test_a_film_and_an_adapter_stay_where_they_are_known_until_that_engine_is_much_fuller() -> None:
    async def body(fleet: Fleet, links: list[EngineLink]) -> None:
        await fleet.ask(request(1, film=7, adapter="tb"))
        first = next(number for number, link in enumerate(links) if len(link))
        for number in range(2, 9):
            await fleet.ask(request(number, film=7))
        assert len(links[first]) > len(links[1 - first]) >= 1
        before = len(links[first])
        await fleet.ask(request(20, adapter="tb"))
        assert len(links[first]) in (before, before + 1)

    with_fleet(body)


def test_a_lost_engine_leaves_its_work_to_the_other() -> None:
    async def body(fleet: Fleet, links: list[EngineLink]) -> None:
        assert (await answered(fleet, request(1, "die"))).error_code == "engine_unavailable"
        assert fleet.is_up
        assert (await answered(fleet, request(2, "echo"))).value is not None
        assert await links[0].wait_up(60)
        assert await links[1].wait_up(60)
        assert fleet.restarts == 1

    with_fleet(body)


def test_a_change_of_adapters_goes_to_all_and_configs_keep_their_device() -> None:
    async def body(fleet: Fleet, links: list[EngineLink]) -> None:
        load = Request(1, "load", adapter="tb", texts=("echo",))
        assert not (await answered(fleet, load)).is_error
        failing = replace(load, id=2, texts=("die",))
        assert (await answered(fleet, failing)).error_code == "engine_unavailable"
        assert fleet.restarts + sum(not link.is_up for link in links) >= 2

    with_fleet(body)
    fleet = Fleet.of(EngineConfig(threads=4), ("cpu", "cpu", "cuda:1"))
    fleet.config = replace(fleet.config, unloaded=("tb",))
    assert [(link.config.device, link.config.threads) for link in fleet._links] == [("cpu", 2), ("cpu", 2), ("cuda:1", 2)]
    assert all(link.config.unloaded == ("tb",) for link in fleet._links)


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_an_engine_that_fails_over_a_change_costs_the_others_nothing_and_is_told_again(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "SLOWER_S", 0.3)

    async def run() -> None:
        configs = [EngineConfig(checkpoint=name) for name in ("good", "bad")]
        links = [EngineLink(one, module="fake_engine_process", hang_limit_s=4.0) for one in configs]
        fleet = Fleet(links)
        await fleet.start()
        try:
            links[1].config = EngineConfig(checkpoint="mended")  # what the next one is opened with
            what = f"{fault} on bad"
            outcome = await answered(fleet, Request(1, "load", adapter="tb", texts=(what,)))
            assert (outcome.value or {})["echo"] == what
            assert links[1].restarts == 0 or fault == "die"  # it was not waited for
            heard: list[str] = []
            while what not in heard:
                await asyncio.sleep(0.05)
                answers = await links[1].ask(request(100, "echo")) if links[1].restarts and links[1].is_up else None
                heard = ((await answers.get()).value or {}).get("heard", []) if answers else []
            assert links[1].restarts == 1
        finally:
            await fleet.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_change_that_cannot_be_asked_for_is_answered() -> None:
    async def body(fleet: Fleet, links: list[EngineLink]) -> None:
        odd = Request(1, "load", adapter="tb", texts=("echo",), options={"odd": object()})
        assert (await asyncio.wait_for(answered(fleet, odd), 20)).error_code == InternalError.code

    with_fleet(body)


def test_a_device_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="'gpu'"):
        ServerConfig(devices=("cpu", "gpu"))
