"""A server in processes of its own, as `vesalius serve` starts it, and what it costs: seconds of processor, memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

HOUSE = Path(__file__).resolve().parents[2]
_FORWARDED = re.compile(r'vesalius_forwarded_rows_total\{whom="(\w+)"\} (\S+)')
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Served:
    """A running server: its address, the number of its first process, and how long it took until it listened."""

    url: str
    process: int
    started_s: float

    @property
    def processes(self) -> list[int]:
        return [self.process, *descendants(self.process)]

    def running(self, module: str) -> list[int]:
        """Its processes that run this module."""
        return descendants(self.process, module)

    @property
    def cpu_s(self) -> float:
        """Seconds of processor used so far by processes that still live."""
        return sum(cpu_s(one) for one in self.processes)

    @property
    def memory_mb(self) -> dict[str, float]:
        """rss: resident, shared pages counted in each process; pss: shared pages counted once."""
        return {"rss": _memory_mb(self.processes, "Rss:"), "pss": _memory_mb(self.processes, "Pss:")}


def forwarded_rows(url: str) -> dict[str, float]:
    """Films that went through the trunk so far, by whether anyone still waited for them: "someone", "nobody"."""
    with urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {whom: float(rows) for whom, rows in _FORWARDED.findall(text)}


@contextmanager
def serve(checkpoint: Path, home: Path, options: Sequence[str] = ()) -> Iterator[Served]:
    """`vesalius serve` with these options, on a free port; ended with the block."""
    with start(["-m", "app.cli", "serve", "--port", "0", "--checkpoint", str(checkpoint), *options], home) as served:
        yield served


@contextmanager
def start(arguments: Sequence[str], home: Path, patience_s: float = 30.0) -> Iterator[Served]:
    """Python with these arguments, which says "listens on ADDRESS"; ended with the block, killed after `patience_s`."""
    command = [sys.executable, *arguments]
    environment = {**os.environ, "VESALIUS_HOME": str(home), "PYTHONPATH": str(HOUSE)}
    environment.pop("VESALIUS_API_KEY", None)
    begun = time.perf_counter()
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=HOUSE, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            line = next((line for line in server.stdout if "listens on" in line), "")
            if not line:
                raise SystemExit(f"the server did not start:\n{(home / 'server.log').read_text()[-2000:]}")
            url = next(word for word in line.split() if word.startswith("http"))
            yield Served(url, server.pid, time.perf_counter() - begun)
        finally:
            server.terminate()
            try:
                server.wait(patience_s)
            except subprocess.TimeoutExpired:
                server.kill()


def descendants(parent: int, module: str = "") -> list[int]:
    """Processes below this one; only those that run `module` where it is named."""
    above: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            above[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, last = list[int](), [parent]
    while last:
        last = [process for process, its_parent in above.items() if its_parent in last]
        found += last
    return [process for process in found if not module or _runs(process, module)]


def _runs(process: int, module: str) -> bool:
    with suppress(OSError):
        return module.encode() in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    return False


def cpu_s(process: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
    return 0.0


def _memory_mb(processes: Sequence[int], field: str) -> float:
    total = 0
    for process in processes:
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith(field)).split()[1])
    return round(total / 1024, 1)
