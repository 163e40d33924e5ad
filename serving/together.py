"""together: several things started side by side, all of them or none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def together(starts: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Wait until all have ended well. Where one fails the others are cancelled and waited for, then its error is raised.

    `asyncio.gather` alone would leave the others running behind the error.
    """
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
