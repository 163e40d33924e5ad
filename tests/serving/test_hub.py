"""The hub between several fronts and the engine: answers find their front, who leaves is withdrawn, changes reach all."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from serving.arena import Arena
from serving.config import EngineConfig
from serving.engine_link import EngineLink
from serving.hub import Hub, Peer
from serving.hub_link import HubLink
from serving.link import Answers
from serving.messages import Film, Outcome, Request
from serving.transport import AsyncChannel


@pytest.fixture(autouse=True)
def _find_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@dataclass
class House:
    """A hub over the fake engine, and fronts of it in this process."""

    hub: Hub
    links: list[HubLink]
    peers: list[Peer]
    served: list[asyncio.Task[None]]
    heard: list[str] = field(default_factory=list)


async def add_front(house: House) -> None:
    ours, theirs = socket.socketpair()
    arena = Arena.create(1 << 16)
    peer = Peer(await AsyncChannel.over(ours), arena, asyncio.get_running_loop().create_future())
    link = HubLink(
        await AsyncChannel.over(theirs),
        Arena(os.dup(arena.handle)),
        EngineConfig(checkpoint="fake"),
        on_drain=lambda: house.heard.append("drain"),
        on_lost=lambda: house.heard.append("lost"),
    )
    house.served.append(asyncio.create_task(house.hub.serve(peer)))
    await link.start()
    house.links.append(link)
    house.peers.append(peer)


def with_house(body: Callable[[House], Awaitable[None]]) -> None:
    async def run() -> None:
        engine = EngineLink(EngineConfig(checkpoint="fake"), module="fake_engine_process")
        await engine.start()
        house = House(Hub(engine, 20.0), [], [], [])
        telling = asyncio.create_task(house.hub.keep_telling())
        try:
            await add_front(house)
            await add_front(house)
            await body(house)
        finally:
            telling.cancel()
            for link, peer in zip(house.links, house.peers, strict=True):
                await link.close()
                peer.channel.close()
            await asyncio.gather(*house.served)
            await engine.close()

    asyncio.run(asyncio.wait_for(run(), 120))


async def ask(link: HubLink, number: int, what: str, **more: object) -> Outcome:
    answers = await link.ask(Request(number, "embed_text", texts=(what,), **more))  # type: ignore[arg-type]
    try:
        return await answers.get()
    finally:
        link.release(answers)


def echo(outcome: Outcome) -> object:
    assert outcome.value is not None, outcome
    return outcome.value["echo"]


def test_equal_numbers_of_two_fronts_do_not_collide() -> None:
    async def body(house: House) -> None:
        film = Film(np.zeros((8, 8, 3), np.uint8), "d")
        asked = [(front, number) for number in range(1, 20) for front in (0, 1)]
        found = await asyncio.gather(
            *(ask(house.links[front], number, f"{front}.{number}", film=film) for front, number in asked)
        )
        assert [echo(outcome) for outcome in found] == [f"{front}.{number}" for front, number in asked]
        assert [len(house.links[0]), len(house.hub.link)] == [0, 0]

    with_house(body)


def test_what_goes_wrong_on_the_way_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(house: House) -> None:
        async def broken(request: Request) -> Answers:
            raise RuntimeError("unforeseen")

        with monkeypatch.context() as patch:
            patch.setattr(house.hub.link, "ask", broken)
            for number, operation in ((1, "embed_text"), (2, "unload")):
                asked = Request(number, operation, texts=("a",), adapter="a")  # type: ignore[arg-type]
                answers = await house.links[0].ask(asked)
                assert (await asyncio.wait_for(answers.get(), 10)).error_code == "internal_error"
        assert echo(await ask(house.links[0], 3, "after")) == "after"

    with_house(body)


def test_who_leaves_is_withdrawn_and_a_lost_front_with_all_its_requests() -> None:
    async def body(house: House) -> None:
        first, second = house.links
        leaving = await first.ask(Request(1, "embed_text", texts=("silence",)))
        staying = await second.ask(Request(1, "embed_text", texts=("silence",)))
        for number in (2, 3):
            await second.ask(Request(number, "embed_text", texts=("silence",)))
        while len(house.hub.link) < 4:
            await asyncio.sleep(0.01)
        first.release(leaving)
        while len(house.hub.link) > 3:
            await asyncio.sleep(0.01)
        assert not staying.is_over
        assert len(cancelled(await ask(first, 9, "after"))) == 1
        house.peers[1].channel.close()
        await house.served[1]
        assert len(cancelled(await ask(first, 10, "later"))) == 4
        assert len(house.hub.link) == 0
        while house.heard != ["lost"]:
            await asyncio.sleep(0.01)

    with_house(body)


def cancelled(outcome: Outcome) -> list[int]:
    assert outcome.value is not None
    return list(outcome.value["cancelled"])


def test_a_lost_engine_is_waited_for_and_asked_again() -> None:
    async def body(house: House) -> None:
        slow = [asyncio.create_task(ask(link, 1, "slow")) for link in house.links]
        while len(house.hub.link) < 2:
            await asyncio.sleep(0.01)
        running = house.hub.link._running  # type: ignore[union-attr]
        assert running is not None
        running.process.kill()
        assert [echo(await one) for one in slow] == ["slow", "slow"]
        while not all(link.restarts == 1 and link.is_up for link in house.links):
            await asyncio.sleep(0.01)

    with_house(body)


def test_a_change_of_adapters_is_known_to_all_before_its_answer() -> None:
    async def body(house: House) -> None:
        first, second = house.links
        before = second.config
        assert not (await ask_to(first, "unload")).is_error
        assert second.config.unloaded == first.config.unloaded == house.hub.link.config.unloaded == ("tb",)
        assert not (await ask_to(second, "load")).is_error
        assert second.config.unloaded == first.config.unloaded == house.hub.link.config.unloaded == ()
        assert second.config is not before  # so that adapters are listed anew
        await add_front(house)
        assert not (await ask_to(first, "unload")).is_error
        assert house.links[2].config.unloaded == ("tb",)

    with_house(body)


async def ask_to(link: HubLink, operation: str) -> Outcome:
    request = Request(50, operation, adapter="tb", texts=("echo",))  # type: ignore[arg-type]
    answers = await link.ask(request)
    outcome = await answers.get()
    link.release(answers)
    return outcome


def test_a_front_knows_how_much_waits_elsewhere() -> None:
    async def body(house: House) -> None:
        first, second = house.links
        held = await first.ask(Request(1, "embed_text", texts=("silence",)))
        while len(second) != 1:
            await asyncio.sleep(0.01)
        assert len(first) == 1
        first.release(held)
        while len(second):
            await asyncio.sleep(0.01)

    with_house(body)


def test_what_the_engines_count_is_told_once_whatever_the_number_of_fronts() -> None:
    async def body(house: House) -> None:
        def told() -> int:
            return sum(link.rows["forwarded"]["waited for"] for link in house.links)

        for total in (3, 7):
            house.hub.link.rows["forwarded"]["waited for"] = total
            while told() < total:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert told() == 7

    with_house(body)
