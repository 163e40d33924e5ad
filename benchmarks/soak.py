"""A long run with poison, callers who leave, and processes that are killed: is every other request answered, and rightly?

    python -m benchmarks.soak --requests 20000 --report runs/soak.json          the full run
    python -m benchmarks.soak --requests 2000                                   a short one

The server runs in processes of its own, as `vesalius serve` starts it, over a tiny checkpoint (or --checkpoint bundled). Of
the requests 1 % carry a film that is broken and must be refused, 5 % come from callers who leave, and now and then a decode or
the engine process is killed. What was lost with an engine the server asks of the next one, once; who loses that one too is
told so (503 with Retry-After) and asks again, as any client would. A 503 for less is wrong. The truth of each film and text is
asked for before all that, one at a time. Memory is that of the server and its processes; a process that was just replaced is
smaller, so what is compared is the upper quartile after warm-up and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.figures import tell
from benchmarks.load.server import Served, start

ENGINE, DECODER = "serving.engine_process", "serving.decode_process"
BODY = {"labels": ["effusion", "mass"], "templates": ["there is {}"]}
POISON = b"\x89PNG\r\n\x1a\n" + b"not a picture" * 9
FILMS, TEXTS = 48, 24
TOLERANCE = 1e-3
NOTICED_S = 0.5  # the server sends to an engine that was killed until it has noticed


@dataclass(frozen=True)
class Plan:
    """What is asked of the server. kill_every: requests between two kills, on average; every third hits the engine.

    patience_s: how long the server lets a request wait for a new engine; more on a machine that is busy with other things.
    """

    requests: int = 20_000
    clients: int = 8
    poison: float = 0.01
    leaving: float = 0.05
    kill_every: int = 250
    seed: int = 0
    checkpoint: str = ""
    patience_s: float = 30.0


@dataclass
class Outcome:
    """What came of it. wrong, lost: sentences, empty where all is well. memory_mb: of the server's tree over time."""

    requests: int = 0
    answered: int = 0
    refused_poison: int = 0
    left: int = 0
    asked_again: int = 0  # after a 503, each a request that two killed engines took with them
    kills: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def memory_growth(self) -> float:
        """The last quarter over the second quarter, upper quartiles, less one; 0 with fewer than eight samples."""
        count = len(self.memory_mb) // 4
        if count < 2:
            return 0.0
        warm, end = self.memory_mb[count : 2 * count], self.memory_mb[-count:]
        return float(np.quantile(end, 0.75) / np.quantile(warm, 0.75) - 1)

    @property
    def is_clean(self) -> bool:
        counted = self.answered + self.refused_poison + self.left
        return not (self.wrong or self.lost) and counted == self.requests and self.memory_growth <= 0.10


class Soak:
    def __init__(self, http: httpx.AsyncClient, server: Served, plan: Plan) -> None:
        self.http, self.server, self.plan, self.outcome = http, server, plan, Outcome()
        self._chance = random.Random(plan.seed)
        self._truth: dict[str, Any] = {}
        self._engines_killed: list[float] = []

    async def run(self) -> Outcome:
        began = time.monotonic()
        await self._learn_the_truth()
        numbers = iter(range(self.plan.requests))
        watching = asyncio.create_task(self._watch_memory())
        await asyncio.gather(*(self._client(numbers) for _ in range(self.plan.clients)))
        watching.cancel()
        self.outcome.requests, self.outcome.seconds = self.plan.requests, round(time.monotonic() - began, 1)
        return self.outcome

    async def _learn_the_truth(self) -> None:
        for name in (*(f"film {k}" for k in range(FILMS)), *(f"text {k}" for k in range(TEXTS))):
            answer = await self._ask(name)
            answer.raise_for_status()
            self._truth[name] = numbers_of(answer)

    async def _client(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            draw = self._chance.random()
            if self._chance.random() < 1 / self.plan.kill_every:
                self._kill()
            if draw < self.plan.poison:
                await self._poison(number)
            elif draw < self.plan.poison + self.plan.leaving:
                await self._leave(number)
            else:
                await self._expect(number, self._chance.choice(list(self._truth)))

    async def _expect(self, number: int, name: str) -> None:
        asked = time.monotonic()
        try:
            answer = await self._ask(name)
        except httpx.HTTPError as error:
            self.outcome.lost.append(f"request {number}, {name}: {type(error).__name__}")
            return
        self.outcome.statuses[str(answer.status_code)] += 1
        if answer.status_code == 503 and self._engines_lost_since(asked) >= 2 and "Retry-After" in answer.headers:
            self.outcome.asked_again += 1
            await asyncio.sleep(float(answer.headers["Retry-After"]))
            await self._expect(number, name)
        elif answer.status_code != 200:
            self.outcome.wrong.append(f"request {number}, {name}: status {answer.status_code} {answer.text[:120]}")
        elif not np.allclose(numbers_of(answer), self._truth[name], atol=TOLERANCE):
            self.outcome.wrong.append(f"request {number}, {name}: other numbers than before")
        else:
            self.outcome.answered += 1

    def _engines_lost_since(self, moment: float) -> int:
        return sum(killed > moment - NOTICED_S for killed in self._engines_killed)

    async def _poison(self, number: int) -> None:
        try:
            answer = await self.http.post("/v1/zero_shot", data=_fields(), files=[("file", ("film", POISON))])
        except httpx.HTTPError as error:
            self.outcome.lost.append(f"request {number}, poison: {type(error).__name__}")
            return
        self.outcome.statuses[str(answer.status_code)] += 1
        if 400 <= answer.status_code < 500 and answer.status_code != 429:
            self.outcome.refused_poison += 1
        else:
            self.outcome.wrong.append(f"request {number}, poison: status {answer.status_code}")

    async def _leave(self, number: int) -> None:
        """Ask, and be gone before the answer, or just after it, with the connection: a shared pool may lose places to such."""
        async with httpx.AsyncClient(base_url=self.server.url, timeout=400, trust_env=False) as own:
            asking = asyncio.create_task(self._ask(f"film {number % FILMS}", stored=False, http=own))
            await asyncio.sleep(self._chance.random() * 0.05)
            asking.cancel()
            with suppress(asyncio.CancelledError, httpx.HTTPError):
                await asking
        self.outcome.left += 1

    async def _ask(self, name: str, *, stored: bool = True, http: httpx.AsyncClient | None = None) -> httpx.Response:
        http = http or self.http
        kind, _, number = name.partition(" ")
        headers = {} if stored and self._chance.random() < 0.5 else {"Cache-Control": "no-store"}
        if kind == "text":
            body = {"input": f"there is a nodule of {number} millimetres"}
            return await http.post("/v1/embeddings", json=body, headers=headers)
        files = [("file", ("film", film(int(number))))]
        return await http.post("/v1/zero_shot", data=_fields(), files=files, headers=headers)

    def _kill(self) -> None:
        module = ENGINE if sum(self.outcome.kills.values()) % 3 == 2 else DECODER
        held = self.server.running(module)
        if held:
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(held), signal.SIGKILL)
            self.outcome.kills[module] += 1
            if module == ENGINE:
                self._engines_killed.append(time.monotonic())

    async def _watch_memory(self) -> None:
        while True:
            self.outcome.memory_mb.append(self.server.memory_mb["rss"])
            await asyncio.sleep(1.0)


def film(seed: int) -> bytes:
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.kron(coarse, np.ones((12, 12), np.uint8))).save(file, "PNG")
    return file.getvalue()


def numbers_of(answer: httpx.Response) -> list[float]:
    """The numbers of an answer, in its order."""
    data = answer.json()["data"]
    if "embedding" in data[0]:
        return [float(value) for value in data[0]["embedding"]]
    return [float(one["logit"]) for one in sorted(data[0]["scores"], key=lambda one: str(one["label"]))]


def _fields() -> dict[str, str]:
    return {name: json.dumps(value) for name, value in BODY.items()}


# --- the server ------------------------------------------------------------------------------------------------------


def run_server(checkpoint: str, patience_s: float) -> None:
    """What `run` starts: it says its address and serves until it is told to end."""
    from serving.config import EngineConfig, ServerConfig
    from serving.server import run

    engine = EngineConfig(checkpoint=checkpoint)
    config = ServerConfig(port=0, engine=engine, start_limit_s=900.0, restart_patience_s=patience_s)
    asyncio.run(run(config, lambda url, _: print(f"listens on {url}", flush=True)))


async def soak(server: Served, plan: Plan) -> Outcome:
    limits = httpx.Limits(max_connections=plan.clients * 2)
    async with httpx.AsyncClient(base_url=server.url, timeout=400, trust_env=False, limits=limits) as http:
        return await Soak(http, server, plan).run()


def run(plan: Plan) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        checkpoint = plan.checkpoint
        if not checkpoint:
            from foundation.tiny import make_tiny_checkpoint

            checkpoint = str(make_tiny_checkpoint(home / "tiny"))
        ours = ["-m", "benchmarks.soak", "--serve", checkpoint, "--patience", str(plan.patience_s)]
        with start(ours, home, patience_s=60.0) as server:
            return asyncio.run(soak(server, plan))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=Plan.requests)
    parser.add_argument("--clients", type=int, default=Plan.clients)
    parser.add_argument("--kill-every", type=int, default=Plan.kill_every)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--checkpoint", default="", help="a folder or 'bundled'; a tiny one is made where none is given")
    parser.add_argument("--patience", type=float, default=Plan.patience_s, help="seconds a request waits for a new engine")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        run_server(chosen.serve, chosen.patience)
        return 0
    plan = Plan(
        chosen.requests,
        chosen.clients,
        kill_every=chosen.kill_every,
        seed=chosen.seed,
        checkpoint=chosen.checkpoint,
        patience_s=chosen.patience,
    )
    outcome = run(plan)
    told = vars(outcome) | {"plan": asdict(plan), "memory_growth": outcome.memory_growth, "clean": outcome.is_clean}
    told["memory_mb"] = {"first": outcome.memory_mb[:1], "highest": max(outcome.memory_mb), "last": outcome.memory_mb[-1:]}
    tell(told, chosen.report)
    return 0 if outcome.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
