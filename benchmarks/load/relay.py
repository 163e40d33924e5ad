"""What the hub costs: processor milliseconds a request in the parent of several fronts, `python -m benchmarks.load.relay`.

One process plays parent and front over a socket pair, and an engine that answers at once is another process, so what this
process spends is both ends of the relay; beside it, the same requests over an EngineLink alone. Processor time, not wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import time
from pathlib import Path

import numpy as np

from serving.arena import Arena
from serving.config import EngineConfig
from serving.engine_link import ARENA_BYTES, EngineLink
from serving.hub import Hub, Peer
from serving.hub_link import HubLink
from serving.messages import Film, Request
from serving.transport import AsyncChannel

ECHO = "benchmarks.load.echo_engine"
AT_ONCE = 16


async def measure(requests: int, size: int) -> tuple[float, float]:
    """Milliseconds a request: over the engine's link alone; through a hub and a front's link beside it."""
    engine = EngineLink(EngineConfig(), module=ECHO)
    await engine.start()
    ours, theirs = socket.socketpair()
    arena = Arena.create(ARENA_BYTES)
    peer = Peer(await AsyncChannel.over(ours), arena, asyncio.get_running_loop().create_future())
    front = HubLink(
        await AsyncChannel.over(theirs),
        Arena(os.dup(arena.handle)),
        EngineConfig(),
        on_drain=lambda: None,
        on_lost=lambda: None,
    )
    serving = asyncio.create_task(Hub(engine, 10.0).serve(peer))
    await front.start()
    alone = relayed = float("inf")
    for _ in range(3):
        alone = min(alone, await spent_ms(engine, requests, size))
        relayed = min(relayed, await spent_ms(front, requests, size))
    await front.close()
    peer.channel.close()
    await serving
    await engine.close()
    return alone, relayed


async def spent_ms(link: EngineLink | HubLink, requests: int, size: int) -> float:
    film = Film(np.zeros((size, size, 3), np.uint8), "0" * 64)
    numbers = iter(range(1, requests + 1))

    async def ask() -> None:
        for number in numbers:
            answers = await link.ask(Request((1 << 40) + number, "embed_image", film=film, tenant="ward"))
            assert not (await answers.get()).is_error
            link.release(answers)

    start = time.process_time()
    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return (time.process_time() - start) * 1000 / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--size", type=int, nargs="*", default=[128, 224])
    chosen = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    print("film | link alone, ms | through the hub, ms | the hub and the front's end of it, ms")
    for size in chosen.size:
        alone, relayed = asyncio.run(measure(chosen.requests, size))
        print(f"{size} | {alone:.3f} | {relayed:.3f} | {relayed - alone:.3f}")


if __name__ == "__main__":
    main()
