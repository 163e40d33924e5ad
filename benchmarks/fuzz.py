"""Damaged films through the real routes and the real decode processes: not one crash, hang or server error.

    python -m benchmarks.fuzz --count 10000 --report runs/fuzz.json

Every mutant (mutants.py) goes to one of four routes, in process, behind which stands the decode pool that a server has; what
is asked of a film that could be read is answered by the fake gateway. An answer is right when its status is 200 or one of
the 400s and its error is of the catalogue. What was not is written beside the report, to be sent again.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.figures import tell
from benchmarks.mutants import mutant, seeds
from serving.api.app import create_app
from serving.decode_pool import DecodeConfig, DecodePool
from serving.fake import ADAPTER, CONTRACT, FakeGateway
from serving.http_errors import STATUS
from serving.messages import Film, RawFilm

Change = Callable[[Mapping[str, bytes], int], tuple[str, bytes]]
Mutant = tuple[int, str, bytes]
ROUTES = ("zero_shot", "embeddings", "classify", "chat")
SLACK_S = 20.0  # beyond the pool's own limit: two films may stand before one, on a busy machine


@dataclass(eq=False)
class PoolGateway(FakeGateway):
    """The fake gateway, its films decoded by real processes."""

    pool: DecodePool = field(default_factory=DecodePool)

    async def decode(self, raw: RawFilm) -> Film:
        return await self.pool.decode(raw, CONTRACT)


@dataclass
class Found:
    """What a run found. crashes: decode processes lost; hangs: films given up or answers beyond the limit."""

    mutants: int = 0
    seeds: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    crashes: int = 0
    hangs: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.crashes or self.hangs or self.faults)


async def fuzz(
    count: int,
    first: int = 0,
    *,
    config: DecodeConfig | None = None,
    keep: Path | None = None,
    held: Mapping[str, bytes] | None = None,
    change: Change = mutant,
) -> Found:
    """Send mutants first .. first + count - 1; what went wrong is written into `keep`."""
    held, found, began = held or seeds(), Found(), time.monotonic()
    pool = DecodePool(config or DecodeConfig())
    await pool.start()
    app = create_app(PoolGateway(pool=pool))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=600) as http:
            mutants = ((number, *change(held, number)) for number in range(first, first + count))
            workers = (_work(http, mutants, found, pool.config, keep) for _ in range(2 * pool.config.processes))
            await asyncio.gather(*workers)
    finally:
        found.crashes = pool.replaced
        await pool.close()
    found.mutants, found.seeds, found.seconds = count, len(held), round(time.monotonic() - began, 1)
    return found


async def _work(
    http: httpx.AsyncClient, mutants: Iterator[Mutant], found: Found, config: DecodeConfig, keep: Path | None
) -> None:
    for number, name, data in mutants:
        began = time.monotonic()
        answer = await _ask(http, ROUTES[number % len(ROUTES)], data)
        took = time.monotonic() - began
        found.slowest_s = max(found.slowest_s, round(took, 2))
        found.statuses[str(answer.status_code)] += 1
        wrong = _fault(answer)
        if took > config.wall_limit_s + SLACK_S or "was given up" in answer.text:
            found.hangs += 1
            wrong = wrong or f"took {took:.1f} s"
        if answer.status_code != 200:
            found.codes[_code(answer)] += 1
        if wrong:
            found.faults.append(f"mutant {number} of {name}: {wrong}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"mutant-{number}.bin").write_bytes(data)


async def _ask(http: httpx.AsyncClient, route: str, data: bytes) -> httpx.Response:
    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    if route == "zero_shot":
        return await http.post("/v1/zero_shot", json={"images": uri, "labels": ["effusion"]})
    if route == "embeddings":
        return await http.post("/v1/embeddings", files=[("file", ("film", data))])
    if route == "classify":
        return await http.post("/v1/classify", json={"images": uri, "model": ADAPTER})
    part = {"type": "image_url", "image_url": {"url": uri}}
    content = [part, {"type": "text", "text": "Is there an effusion?"}]
    return await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], "max_tokens": 2})


def _fault(answer: httpx.Response) -> str:
    """What is wrong with an answer; "" where nothing is."""
    if answer.status_code >= 500:
        return f"status {answer.status_code}"
    if answer.status_code == 200:
        return ""
    code = _code(answer)
    return "" if STATUS.get(code) == answer.status_code else f"status {answer.status_code} with the code {code!r}"


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "no error object"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first mutant")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--limit", type=float, default=DecodeConfig.time_limit_s, help="seconds of processor one film may take")
    chosen = parser.parse_args()
    config = DecodeConfig(time_limit_s=chosen.limit, start_limit_s=600.0)
    keep = chosen.report.with_suffix("") if chosen.report else None
    found = asyncio.run(fuzz(chosen.count, chosen.first, config=config, keep=keep))
    tell(vars(found) | {"clean": found.is_clean}, chosen.report)  # NOTE: asdict would spoil the counters
    return 0 if found.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
