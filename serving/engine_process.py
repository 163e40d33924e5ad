"""The engine's own process: a thread that reads the socket, and the main thread that owns torch.

    parent --open--> here --hello (EngineFacts) | failed (code, sentence)--> parent
    parent --request, cancel--> inbox --EngineLoop--> outcome, beat --> parent

All of torch stays in the main thread: a second thread that ever runs a parallel operation slows the first. When the
parent's end of the socket closes, the process ends at once, whatever it is computing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from foundation.errors import VesaliusError
from serving.config import EngineConfig
from serving.doorstep import Doorstep
from serving.engine_loop import EngineLoop
from serving.lanes_loop import LanesLoop
from serving.logs import configure
from serving.scheduler import Scheduler
from serving.spawn import parent_arena, parent_channel
from serving.transport import Channel, PeerLostError

if TYPE_CHECKING:
    from serving.engine import Engine
    from serving.generate_engine import GenerateEngine

SWITCH_S = 0.0005  # for how long the loop's Python may hold up a lane between two operations


def main() -> None:
    configure(logging.WARNING)
    channel = parent_channel()
    try:
        serve(channel, EngineConfig(**channel.receive()["config"]))
    except PeerLostError:
        return


def serve(channel: Channel, config: EngineConfig) -> None:
    """Open the model, prove that it answers, then answer for ever."""
    try:
        engine = open_engine(config)
        engine.check()
    except VesaliusError as error:
        channel.send({"kind": "failed", "code": error.code, "message": error.message})
        return
    channel.send({"kind": "hello", "facts": asdict(engine.facts)})
    loop = loop_over(engine, config, channel)
    loop.arena = parent_arena()
    threading.Thread(target=_read, args=(channel, loop), daemon=True).start()
    loop.run_forever()


def loop_over(engine: Engine | GenerateEngine, config: EngineConfig, channel: Channel) -> EngineLoop:
    """Lanes where the engine has them."""
    scheduler = Scheduler(config.budget)
    lanes = getattr(engine, "lanes", 0)
    if not lanes:
        return EngineLoop(engine, scheduler, channel.send, **_shared(engine))
    sys.setswitchinterval(SWITCH_S)
    loop = LanesLoop(
        cast("Engine", engine),
        scheduler,
        channel.send,
        lanes=lanes,
        lane_rows=config.lane_rows,
        cores=config.cores,
        **_shared(engine),
    )
    cast("Engine", engine).bank.before_change = loop.wait_idle
    loop.warm_up(engine.check)
    return loop


def open_engine(config: EngineConfig) -> Engine | GenerateEngine:
    """The engine for what lies in the checkpoint's folder. NOTE: torch is imported here and not before."""
    from foundation.chat_folder import is_chat_folder

    if is_chat_folder(Path(config.checkpoint)):
        from serving.generate_engine import GenerateEngine

        return GenerateEngine.open(config)
    from serving.engine import Engine

    return Engine.open(config)


def _shared(engine: Engine | GenerateEngine) -> dict[str, Any]:
    """What a loop has of an engine with towers and adapters."""
    from serving.engine import Engine

    if not isinstance(engine, Engine):
        return {}
    return {"doorstep": Doorstep(engine.loader, engine.absent), "withdrawn": engine.withdrawn, "weigh": engine.weigh}


def _read(channel: Channel, loop: EngineLoop) -> None:
    for message in channel:
        loop.deliver(message)
    os._exit(0)  # the parent has gone; nobody waits for what is being computed


if __name__ == "__main__":
    main()
