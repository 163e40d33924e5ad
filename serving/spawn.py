"""Start one of the server's own processes, joined to this one by a socket pair.

    process, channel = await spawn("serving.decode_process", {"OMP_NUM_THREADS": "1"})

The child is a fresh interpreter (nothing is forked, nothing pickled) that finds its end of the pair as the file
descriptor named in its first argument, and a shared arena's in its second. It ignores Ctrl-C and SIGTERM, which a terminal or
a service manager sends to all processes of a server at once and which are the parent's to handle: what runs may still need
the child. It ends when the pair closes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from foundation.errors import EngineUnavailable
from serving.arena import Arena
from serving.transport import AsyncChannel, Channel

_HOUSE = Path(__file__).resolve().parent.parent


async def spawn(
    module: str, environment: Mapping[str, str], arena: Arena | None = None, further: Sequence[int] = ()
) -> tuple[asyncio.subprocess.Process, AsyncChannel]:
    """Run `python -m module FD [ARENA]` and return it with our end of the pair. arena: memory the two share.

    further: file descriptors that the child is to have beside them, named in its arguments after those.
    Raises EngineUnavailable where this machine lets no further process start.
    """
    assert arena is not None or not further
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise no_process(module, error) from None
    handles = (theirs.fileno(), *([] if arena is None else [arena.handle]), *further)
    paths = [str(_HOUSE), os.environ.get("PYTHONPATH", "")]
    inherited = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *map(str, handles),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=handles,
            env=inherited,
        )
    except OSError as error:
        ours.close()
        raise no_process(module, error) from None
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    try:
        return process, await AsyncChannel.over(ours)
    except BaseException:
        ours.close()
        kill(process)
        await process.wait()
        raise


def no_process(module: str, error: OSError) -> EngineUnavailable:
    """That this machine lets no further process start."""
    why = f"No process can be started for {module} ({error.strerror}). Allow more memory, processes or open files."
    return EngineUnavailable(why)


def parent_channel() -> Channel:
    """In the child: its end of the pair, for a process without an event loop."""
    return Channel(parent_socket())


def parent_socket() -> socket.socket:
    """In the child: its end of the pair."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return socket.socket(fileno=int(sys.argv[1]))


def parent_arena() -> Arena | None:
    """In the child: the memory it shares with its parent, where there is any."""
    return Arena(int(sys.argv[2])) if len(sys.argv) > 2 else None


def parent_handles() -> list[int]:
    """In the child: the further file descriptors it was given."""
    return [int(word) for word in sys.argv[3:]]


async def end(process: asyncio.subprocess.Process, channel: AsyncChannel, patience_s: float = 2.0) -> None:
    """Close the pair, wait a little for the process to end by itself, then kill it; at once where the caller is cancelled."""
    channel.close()
    try:
        await asyncio.wait_for(process.wait(), patience_s)
    except TimeoutError:
        pass
    finally:
        kill(process)
    await process.wait()


def processor_s(process_id: int) -> float:
    """Seconds of processor that another process has used so far, by the clock of clock_getcpuclockid(3); 0 once it has gone."""
    with suppress(OSError):
        return time.clock_gettime(~process_id << 3 | 2)
    return 0.0


def kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
