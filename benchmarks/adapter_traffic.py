"""Many clients on many adapters through the real server, every answer compared with what its adapter says alone.

The films are made in code; the truth comes from an engine that has one adapter at a time and no neighbours. Used by
`benchmarks/adapters.py` for minutes, and by the tests for seconds.
"""

from __future__ import annotations

import asyncio
import io
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

TOLERANCE = 2e-3  # of a probability; batches of another shape round another way
LABELS = ("effusion", "mass", "nodule")
Truth = Mapping[tuple[str, int], tuple[float, ...]]  # (digest of the adapter, film's number) -> probabilities


@dataclass
class Seen:
    """What the clients saw. wrong: answers that are not those of the adapter their provenance names.

    failed: what each answer that was none said; codes: how many of them had which code, or were which loss of the connection.
    """

    latencies_s: list[float] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    @property
    def answers(self) -> int:
        return len(self.latencies_s)

    def percentile_ms(self, percent: float) -> float:
        return round(float(np.percentile(self.latencies_s, percent)) * 1000, 2)


def make_films(count: int, size: int = 96) -> list[bytes]:
    """Films of blotches, as PNG."""
    films = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(np.kron(coarse, np.ones((size // 12, size // 12), np.uint8))).save(file, format="PNG")
        films.append(file.getvalue())
    return films


def write_adapters(folder: Path, checkpoint: str, count: int, first_block: int = 0) -> list[str]:
    """`count` classification adapters of random weights for a checkpoint, by their names. All differ in every tensor."""
    from adapters.fake import make_fake_adapter
    from adapters.files import write_adapter
    from foundation.checkpoint import open_checkpoint

    backbone = open_checkpoint(checkpoint).backbone
    names = [f"many-{number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        if not (folder / name).exists():
            write_adapter(folder / name, make_fake_adapter(backbone, name, LABELS, seed=number, first_block=first_block))
    return names


def adapter_bytes(folder: Path, checkpoint: str, name: str) -> int:
    """Of one slot."""
    from adapters.bank import AdapterBank
    from adapters.files import read_adapter
    from foundation.checkpoint import open_checkpoint

    backbone = open_checkpoint(checkpoint).backbone
    return AdapterBank(backbone).bytes_of(read_adapter(folder / name, backbone).lora)


def truth_of(
    folder: Path, checkpoint: str, names: Sequence[str], films: Sequence[bytes]
) -> dict[tuple[str, int], tuple[float, ...]]:
    """Each adapter's probabilities of each film, through the plain definition of LoRA and without a server."""
    import torch

    from adapters.files import read_adapter
    from adapters.lora import load_weights, remove_lora
    from adapters.tasks.classification import Classifier
    from foundation.checkpoint import open_checkpoint
    from foundation.preprocess import normalise
    from serving.decode_process import decode
    from serving.messages import RawFilm

    backbone = open_checkpoint(checkpoint).backbone
    contract = backbone.contract
    seen = [normalise(decode(RawFilm(film), contract).pixels, contract) for film in films]
    pixels = torch.from_numpy(np.stack(seen))
    found: dict[tuple[str, int], tuple[float, ...]] = {}
    for name in names:
        adapter = read_adapter(folder / name, backbone)
        load_weights(backbone.image_tower, adapter.lora)
        with torch.inference_mode():
            results = Classifier.open(adapter.card, adapter.head)(backbone.encode_image(pixels))
        remove_lora(backbone.image_tower)
        for number, result in enumerate(results):
            found[adapter.digest, number] = tuple(result.probabilities.tolist())
    return found


def zipf(count: int, seed: int, exponent: float = 1.0) -> Callable[[], int]:
    """Numbers below `count`, the n-th as often as 1 / n ** exponent."""
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    places = np.random.default_rng(seed).permutation(count)
    draw, total = np.random.default_rng(seed + 1), np.cumsum(weights / weights.sum())
    return lambda: int(places[min(count - 1, int(np.searchsorted(total, draw.random())))])


def uniform(count: int, seed: int) -> Callable[[], int]:
    draw = random.Random(seed)
    return lambda: draw.randrange(count)


class FailedError(RuntimeError):
    """An answer that is an error; code: the server's own."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(f"{status}: {error}")
        self.code = str(error.get("code"))


async def classify(http: httpx.AsyncClient, name: str, film: bytes) -> tuple[str, tuple[float, ...]]:
    """The digest an answer names and its probabilities. Raises FailedError for any other answer."""
    answer = await http.post("/v1/classify", files={"file": ("film", film)}, data={"model": name})
    if answer.status_code != 200:
        raise FailedError(answer.status_code, answer.json()["error"])
    (item,) = answer.json()["data"]
    if item.get("error"):
        raise FailedError(200, item["error"])
    return item["provenance"]["adapter"], tuple(label["probability"] for label in item["labels"])


async def traffic(
    url: str,
    names: Sequence[str],
    films: Sequence[bytes],
    truth: Truth,
    *,
    clients: int,
    pick: Callable[[], int],
    requests: int = 0,
    seconds: float = 0.0,
) -> Seen:
    """Closed loop: each client asks the next question when it has its answer. Until `requests`, or for `seconds`."""
    seen, until = Seen(), time.monotonic() + seconds
    # A connection that has been idle for longer may be closed by the server just as the next question is sent.
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients, keepalive_expiry=1.0)

    async def client(number: int) -> None:
        draw, begun = random.Random(number), 0
        while (begun < requests // clients) if requests else (time.monotonic() < until):
            begun += 1
            name, film = names[pick()], draw.randrange(len(films))
            start = time.perf_counter()
            try:
                digest, told = await classify(http, name, films[film])
            except (FailedError, httpx.HTTPError) as error:
                after_s = time.perf_counter() - start
                seen.failed.append(f"{type(error).__name__} after {after_s:.1f} s: {error}")
                seen.codes[error.code if isinstance(error, FailedError) else type(error).__name__] += 1
                continue
            seen.latencies_s.append(time.perf_counter() - start)
            seen.digests.add(digest)
            known = truth.get((digest, film))
            if truth and (known is None or not np.allclose(told, known, atol=TOLERANCE)):
                seen.wrong += 1

    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False, limits=limits) as http:
        await asyncio.gather(*(client(number) for number in range(clients)))
    return seen


async def replace_to_and_fro(url: str, root: Path, versions: Sequence[Path], seconds: float) -> int:
    """Put one version after another into the store and load it, for `seconds`; how often."""
    from adapters.store import AdapterStore

    store, done, until = AdapterStore(root), 0, time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as http:
        while time.monotonic() < until:
            source = versions[done % len(versions)]
            await asyncio.to_thread(store.add, source, replace=True)
            loaded = await http.post(f"/v1/adapters/{source.name}", json={"digest": store.get(source.name).digest})
            if loaded.status_code != 200:
                raise RuntimeError(loaded.text)
            done += 1
    return done


def copy_adapters(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        shutil.copytree(source / name, target / name)
