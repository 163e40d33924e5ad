"""What is started side by side: all of it runs, or none of it is left behind."""

from __future__ import annotations

import asyncio

import pytest

from foundation.errors import EngineUnavailable
from serving.together import together


async def _fail() -> None:
    raise EngineUnavailable("no")


def test_the_others_are_ended_before_the_error_is_told() -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)  # ending takes a moment
            ended.append("endless")

    with pytest.raises(EngineUnavailable):
        asyncio.run(together([endless(), _fail()]))
    assert ended == ["endless"]


def test_a_cancelled_start_ends_all() -> None:
    ended: list[int] = []

    async def endless(number: int) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(number)

    async def run() -> None:
        starting = asyncio.create_task(together([endless(1), endless(2)]))
        await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert sorted(ended) == [1, 2]

    asyncio.run(run())
