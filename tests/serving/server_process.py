"""Helpers for tests with real processes: `vesalius serve` as a subprocess, its children, and questions put to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from live_api import data_uri, png_film

ROOT = Path(__file__).resolve().parents[2]
BODY = {"labels": ["effusion", "mass"], "templates": ["there is {}"]}


def children(module: str, parent: int | None = None) -> list[int]:
    """The processes of ours that run `module`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if module.encode() in words and above == (parent or os.getpid()):
            found.append(int(folder.name))
    return found


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """A process that is there and does nothing."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def send_to_all(number: signal.Signals, *processes: int) -> None:
    """As a service manager or a terminal does."""
    for process in processes:
        os.kill(process, number)


def score(http: httpx.Client, seed: int, **headers: str) -> httpx.Response:
    return http.post("/v1/zero_shot", json={**BODY, "images": data_uri(png_film(seed))}, headers=headers)


def metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def run_serve(checkpoint: Path, home: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "app.cli", "serve", "--checkpoint", str(checkpoint), "--port", "0", *options]
    environment = {**os.environ, "VESALIUS_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("VESALIUS_API_KEY", None)
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def address_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert "listens on" in line, server.stderr.read() if server.stderr else ""
    return line.split()[3]
