"""The bare model: what the same machine does with the same films when nobody serves them. A process of its own.

    bare       one film at a time: decode, normalise, forward
    pipeline   decode in a thread, forward on all cores in batches: the offline pipeline, overlapped
    lanes      one thread a core, each decoding and forwarding its own films: no thread waits for another

It opens the checkpoint once and then answers one JSON line for each JSON line it is sent, so that its runs can stand
between those of a server. `Offline` is the other end.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.load.server import HOUSE

BATCH = 16


class Offline:
    """The process, from outside. Each question runs to its end before the next."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, way: str, films: Path, seconds: float, threads: int) -> dict[str, float]:
        """way: "bare", "pipeline" or "lanes". Medians, rates and processor seconds per film."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = {"way": way, "films": str(films), "seconds": seconds, "threads": threads}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def offline(checkpoint: Path, precision: str) -> Iterator[Offline]:
    command = [sys.executable, "-m", "benchmarks.load.offline", str(checkpoint), precision]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=HOUSE, env=environment, stdin=pipe, stdout=pipe, text=True)
    try:
        yield Offline(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


class Bare:
    """In the process itself: the backbone and its films."""

    def __init__(self, checkpoint: str, precision: str) -> None:
        import torch

        from foundation.checkpoint import open_checkpoint

        self._torch = torch
        self.backbone = open_checkpoint(checkpoint).backbone
        if precision == "bfloat16":
            self.backbone.image_tower.to(torch.bfloat16)

    def run(self, way: str, films: list[bytes], seconds: float, threads: int) -> dict[str, float]:
        ways: dict[str, Callable[[list[bytes], float, int], list[float]]] = {
            "bare": self._one_by_one,
            "pipeline": self._pipeline,
            "lanes": self._lanes,
        }
        self._one_by_one(films, 0.1, threads)
        begun, cpu = time.perf_counter(), time.process_time()
        took = sorted(ways[way](films, seconds, threads))
        spent_s = time.perf_counter() - begun
        return {
            "median_s": took[len(took) // 2],
            "rate": len(took) / spent_s,
            "cpu_ms": (time.process_time() - cpu) / len(took) * 1000,
        }

    def _one_by_one(self, films: list[bytes], seconds: float, threads: int) -> list[float]:
        self._torch.set_num_threads(threads)
        begun, took = time.perf_counter(), list[float]()
        while time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            self._forward([self._decode(films[len(took) % len(films)])])
            took.append(time.perf_counter() - start)
        return took

    def _pipeline(self, films: list[bytes], seconds: float, threads: int) -> list[float]:
        self._torch.set_num_threads(threads)
        ready: queue.Queue[Any] = queue.Queue(2 * BATCH)  # a None at its end
        until = time.perf_counter() + seconds

        def decode() -> None:
            number = 0
            while time.perf_counter() < until:
                ready.put(self._decode(films[number % len(films)]))
                number += 1
            ready.put(None)

        thread = threading.Thread(target=decode)
        thread.start()
        took = list[float]()
        while batch := _batch(ready):
            start = time.perf_counter()
            self._forward(batch)
            took += [time.perf_counter() - start] * len(batch)
        thread.join()
        return took

    def _lanes(self, films: list[bytes], seconds: float, threads: int) -> list[float]:
        until = time.perf_counter() + seconds
        took: list[list[float]] = [[] for _ in range(threads)]

        def lane(own: list[float]) -> None:
            self._torch.set_num_threads(1)
            while time.perf_counter() < until:
                start = time.perf_counter()
                batch = [self._decode(films[(len(own) + k) % len(films)]) for k in range(BATCH // 2)]
                self._forward(batch)
                own += [time.perf_counter() - start] * len(batch)

        others = [threading.Thread(target=lane, args=(own,)) for own in took[1:]]
        for thread in others:
            thread.start()
        lane(took[0])
        for thread in others:
            thread.join()
        return [one for own in took for one in own]

    def _decode(self, film: bytes) -> Any:
        from foundation.preprocess import preprocess
        from foundation.readers import read_film

        return preprocess(read_film(film), self.backbone.contract)

    def _forward(self, pixels: list[Any]) -> None:
        import numpy as np

        if pixels:
            with self._torch.inference_mode():
                self.backbone.encode_image(self._torch.from_numpy(np.stack(pixels))).embedding.sum().item()


def _batch(ready: queue.Queue[Any]) -> list[Any]:
    """The next films, at most BATCH; empty once the None that ends them has come."""
    found: list[Any] = []
    while len(found) < BATCH:
        one = ready.get()
        if one is None:
            ready.put(None)
            break
        found.append(one)
    return found


def main() -> None:
    bare = Bare(sys.argv[1], sys.argv[2])
    for line in sys.stdin:
        asked = json.loads(line)
        films = [file.read_bytes() for file in sorted(Path(asked["films"]).iterdir())]
        print(json.dumps(bare.run(asked["way"], films, asked["seconds"], asked["threads"])), flush=True)


if __name__ == "__main__":
    main()
