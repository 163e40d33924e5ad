"""The bare model of `benchmarks.load.offline`, asked with a time limit: a process that hangs is ended and asked anew."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load.offline import Offline
from benchmarks.load.server import HOUSE

_OPEN_S = 120.0  # opening the checkpoint, on a busy machine
_TRIES = 3


class BareModelError(Exception):
    """The bare model did not answer."""


@dataclass
class BareModel:
    checkpoint: Path
    precision: str
    _process: subprocess.Popen[str] | None = None
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_TRIES))

    def ask(self, way: str, films: Path, seconds: float, threads: int) -> dict[str, float]:
        """As `Offline.ask`. Raises BareModelError."""
        for _ in range(_TRIES):
            is_new = self._process is None
            asking = self._pool.submit(Offline(self._running()).ask, way, films, seconds, threads)
            try:
                return asking.result(5 * seconds + 30.0 + _OPEN_S * is_new)
            except (TimeoutError, ValueError, OSError):  # it hung, or it ended and so said nothing
                self.end()
        raise BareModelError(f"the bare model did not answer {_TRIES} times ({way})")

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", "benchmarks.load.offline", str(self.checkpoint), self.precision]
            environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, cwd=HOUSE, env=environment, stdin=pipe, stdout=pipe, text=True)
        return self._process


@contextmanager
def bare_model(checkpoint: Path, precision: str) -> Iterator[BareModel]:
    model = BareModel(checkpoint, precision)
    try:
        yield model
    finally:
        model.end()
