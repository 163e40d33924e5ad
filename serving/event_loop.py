"""The event loop of a front process: uvloop where there is one, asyncio's own elsewhere (Windows)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, on the faster loop where there is one."""
    if sys.platform == "win32":
        asyncio.run(main)
    else:
        import uvloop

        uvloop.run(main)
