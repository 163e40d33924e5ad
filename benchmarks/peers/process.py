"""A server in processes of its own: started, waited for until it answers a film, and ended with all that it started.

Every process is told a mark in its environment, which its children inherit: by it those are found that left the family.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.load.films import Ask
from benchmarks.load.server import Served
from benchmarks.peers.drive import status_of

_MARK = "VESALIUS_BENCH_RUN"
_DRAIN_S = 15.0
_KILL_S = 10.0
_POLL_S = 0.05


class NotStartedError(Exception):
    """A server that ended or did not answer in time: a sentence, and the end of its log."""


@contextmanager
def running(
    command: Sequence[str], variables: Mapping[str, str], port: int, probe: Ask, log: Path, limit_s: float
) -> Iterator[Served]:
    """The server, from its first good answer to `probe` on; `started_s` is how long that took. Raises NotStartedError."""
    mark = secrets.token_hex(8)
    environment = {**os.environ, **variables, _MARK: mark}
    url, begun = f"http://127.0.0.1:{port}", time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait(process, url, probe, log, begun + limit_s)
        yield Served(url, process.pid, time.perf_counter() - begun)
    finally:
        _end(process, mark)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait(process: subprocess.Popen[bytes], url: str, probe: Ask, log: Path, until: float) -> None:
    status = 0
    while time.perf_counter() < until:
        if process.poll() is not None:
            raise NotStartedError(f"it ended with code {process.returncode}: {_tail(log)}")
        status = asyncio.run(status_of(url, probe))
        if status == 200:
            return
        time.sleep(_POLL_S)
    raise NotStartedError(f"no good answer in time (last status {status}): {_tail(log)}")


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])[-600:]


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_DRAIN_S)
    until = time.monotonic() + _KILL_S
    while (left := marked(mark)) and time.monotonic() < until:
        for one in left:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.poll()
        time.sleep(0.1)
    process.wait(_KILL_S)


def marked(mark: str) -> list[int]:
    """The processes of this machine that carry the mark and are not zombies (those have no environment left)."""
    wanted, found = f"{_MARK}={mark}".encode(), list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
