"""What many adapters cost: in a batch, through HTTP, in memory, and whether the answers stay right.

    python -m benchmarks.adapters batch     16 rows with 16 adapters over the base's forward, 1 to 256 resident; peft beside it
    python -m benchmarks.adapters http      1,000 adapters registered, some of them resident: p50 and p95
    python -m benchmarks.adapters right     64 clients on different adapters for a minute, every answer compared
    python -m benchmarks.adapters table     the last figures of each as a table between its markers in docs/benchmarks.md

Figures go to docs/results/adapters.json. `batch` runs a ViT of 12.4 M weights at 224 px (`--dtype`; bfloat16 where the
processor multiplies it), the ways interleaved round by round, and tells medians of each round's ratio. `--clock cpu` counts the
process's own seconds, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.adapter_traffic import Seen, adapter_bytes, make_films, traffic, truth_of, uniform, write_adapters, zipf
from benchmarks.figures import PRECISION
from benchmarks.section import put_section
from training.measuring.report import hardware

ROWS = 16
RESIDENT = (1, 8, 64, 256)
FROM_DISK = (1000, 256)  # registered and resident, where the others are also asked for without a place in memory
HOUSE = Path(__file__).resolve().parents[1]
RESULTS = HOUSE / "docs" / "results" / "adapters.json"
Clock = Callable[[], float]


# A batch


def interleaved(ways: Mapping[str, Callable[[], None]], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each way in each round. Each comes right after an untimed `base`: a core that was spared by what ran before
    (single rows, small products) is faster for a while, and would be so for whichever way stands next.
    """
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            ways["base"]()
            begun = clock()
            run()
            times[name].append(clock() - begun)
    return times


def over_base(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """For each way the median of its rounds' ratios to `base`, and the ratio of the fastest rounds."""
    found: dict[str, float] = {"base_ms": round(statistics.median(times["base"]) * 1000, 1)}
    for name, seconds in times.items():
        if name != "base":
            found[name] = round(statistics.median(a / b for a, b in zip(seconds, times["base"], strict=True)), 3)
            found[f"{name}_fastest"] = round(min(seconds) / min(times["base"]), 3)
    return found


def in_a_batch(rounds: int, dtype: torch.dtype, clock: Clock, with_peft: bool) -> dict[str, Any]:
    from adapters.bank import AdapterBank
    from benchmarks.trunk_sharing import vit, weights

    backbone = vit().to(dtype)
    tower = backbone.image_tower
    peers = _peft_ways(copy.deepcopy(tower), backbone.lora_targets(), dtype) if with_peft else {}
    size = AdapterBank(backbone).bytes_of(weights(backbone, 0))
    bank = AdapterBank(backbone, 256 * size)
    pixels = torch.randn(ROWS, 3, 224, 224).to(dtype)
    resident: list[int] = []
    lines, memory = [], [_resident_mb()]
    for count in RESIDENT:
        while len(resident) < count:
            resident.append(bank.install(weights(backbone, 0)))
        memory.append(_resident_mb())
        slots = [resident[(row * count // ROWS if count >= ROWS else row) % count] for row in range(ROWS)]

        def base() -> None:
            with torch.inference_mode():
                tower(pixels)

        def mixed(slots: Sequence[int] = slots) -> None:
            with torch.inference_mode(), bank.rows(slots):
                tower(pixels)

        ways: dict[str, Callable[[], None]] = {"base": base, "bank": mixed}
        if count == RESIDENT[-1]:
            ways |= {name: lambda run=run: run(pixels) for name, run in peers.items()}  # type: ignore[misc]
        line = {"resident": count, "distinct": len(set(slots)), **over_base(interleaved(ways, rounds, clock))}
        print(line, flush=True)
        lines.append(line)
    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": sum(one.numel() for one in tower.parameters()),
        "rounds": rounds,
        "after": "base",
        "lines": lines,
        "adapter_kib": round(size / 1024, 1),
        "adapter_kib_measured": round((memory[-1] - memory[1]) * 1024 / (RESIDENT[-1] - 1), 1),
    }


def _peft_ways(tower: nn.Module, targets: Sequence[str], dtype: torch.dtype) -> dict[str, Callable[[Tensor], None]]:
    """peft's own mixed batch, and peft with one adapter at a time, each over its rows."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(targets), init_lora_weights=False)
    names = [f"number{number}" for number in range(ROWS)]
    model: Any = get_peft_model(tower, config, adapter_name=names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        model.add_adapter(name, config)
    model.to(dtype).eval()

    def mixed(pixels: Tensor) -> None:
        with torch.inference_mode():
            model(pixels, adapter_names=names)

    def switching(pixels: Tensor) -> None:
        with torch.inference_mode():
            for row, name in enumerate(names):
                model.set_adapter(name)
                model(pixels[row : row + 1])

    return {"peft_mixed": mixed, "peft_switching": switching}


def _resident_mb(process: int | str = "self") -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


# Through HTTP


@contextmanager
def server(checkpoint: str, store: Path, slot_bytes: int, memory_bytes: int) -> Iterator[str]:
    from serving.config import EngineConfig, ServerConfig
    from serving.server import background

    engine = EngineConfig(
        checkpoint=checkpoint,
        adapters_dir=str(store),
        threads=1,
        cached_film_bytes=0,
        adapter_bytes=slot_bytes,
        adapter_memory_bytes=memory_bytes,
    )
    with tempfile.TemporaryDirectory() as home, background(ServerConfig(port=0, engine=engine, home=home)) as url:
        yield url


def engine_mb() -> float:
    """Resident memory of the engine process of this server."""
    from benchmarks.load.server import descendants

    (engine,) = descendants(os.getpid(), "serving.engine_process")
    return round(_resident_mb(engine), 1)


def prepared(folder: Path, checkpoint: str, count: int) -> tuple[str, Path, list[str], int]:
    """The checkpoint's folder, a store of `count` adapters on it, their names, and the bytes of one slot."""
    from foundation.tiny import make_tiny_checkpoint

    if checkpoint == "tiny":
        checkpoint = str(make_tiny_checkpoint(folder / "tiny"))
    names = write_adapters(folder / "store", checkpoint, count)
    return checkpoint, folder / "store", names, adapter_bytes(folder / "store", checkpoint, names[0])


def through_http(checkpoint: str, registered: int, resident: Sequence[int], clients: int, requests: int) -> dict[str, Any]:
    """A server for each number of residents; what was measured is kept after each."""
    with tempfile.TemporaryDirectory() as place:
        opened, store, names, size = prepared(Path(place), checkpoint, registered)
        facts = {"hardware": hardware(), "checkpoint": checkpoint, "registered": registered, "clients": clients}
        found: dict[str, Any] = {**facts, "adapter_kib": round(size / 1024, 1), "load": load(), "lines": []}
        for count in resident:
            for memory in (1 << 40, 0):
                if memory or (registered, count) == FROM_DISK:
                    with server(opened, store, count * size, memory) as url:
                        told = {"resident": count, "others": "in memory" if memory else "on disk"}
                        warm = registered if memory else 4 * clients
                        found["lines"] += [told | line for line in _of_server(url, names, clients, warm, requests)]
                    keep("http", found)
    return found


def _of_server(url: str, names: Sequence[str], clients: int, warm: int, requests: int) -> Iterator[dict[str, Any]]:
    """The first `warm` adapters asked for once, then uniform and skewed traffic over all of them."""
    films, order = make_films(8), iter(range(10**9))

    def ask(pick: Callable[[], int], number: int) -> Seen:
        return asyncio.run(traffic(url, names, films, {}, clients=clients, pick=pick, requests=number))

    first = ask(lambda: next(order) % len(names), warm)
    before = engine_mb()
    for name, pick in (("uniform", uniform(len(names), 7)), ("zipf", zipf(len(names), 7))):
        seen = ask(pick, requests)
        assert not seen.failed, seen.failed[:3]
        line = {"traffic": name, "requests": seen.answers, "engine_mb_before": before, "engine_mb_after": engine_mb()}
        line |= {"p50_ms": seen.percentile_ms(50), "p95_ms": seen.percentile_ms(95)}
        line |= {"first_time_p50_ms": first.percentile_ms(50), "first_time_p95_ms": first.percentile_ms(95)}
        print(line, flush=True)
        yield line


def load() -> float:
    """How many processes wanted the machine in the last minute."""
    return round(os.getloadavg()[0], 1)


def right_answers(checkpoint: str, adapters: int, clients: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        opened, store, names, size = prepared(Path(place), checkpoint, adapters)
        films = make_films(8)
        truth = truth_of(store, opened, names, films)
        with server(opened, store, adapters * size // 2, adapters * size // 2) as url:
            before = engine_mb()
            seen = asyncio.run(traffic(url, names, films, truth, clients=clients, pick=uniform(adapters, 11), seconds=seconds))
            after = engine_mb()
    found = {"hardware": hardware(), "checkpoint": checkpoint, "adapters": adapters, "places": adapters // 2}
    found |= {"clients": clients, "seconds": seconds, "answers": seen.answers, "wrong": seen.wrong, "failed": len(seen.failed)}
    found |= {"p50_ms": seen.percentile_ms(50), "p95_ms": seen.percentile_ms(95), "load": load()}
    return found | {
        "engine_mb_before": before,
        "engine_mb_after": after,
        "failures": dict(seen.codes),
        "first_failures": seen.failed[:3],
    }


# The table


def keep(part: str, found: Mapping[str, Any]) -> None:
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    held[part] = found
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def table(held: Mapping[str, Any]) -> str:
    """The section as Markdown; parts that were not measured are left out."""
    parts = ["## Adapters", "", "Made by `python -m benchmarks.adapters`. " + _shared(held)]
    for name in sorted(held):
        if name.startswith("batch"):
            parts += ["", *_batch_table(held[name])]
    if "http" in held:
        parts += ["", *_http_table(held["http"])]
    if "right" in held:
        one = held["right"]
        parts += [
            "",
            f"{one['clients']} clients on {one['adapters']} adapters, {one['places']} of them with a place, for "
            f"{one['seconds']:g} s ({one['hardware']}; checkpoint `{one['checkpoint']}`): {one['answers']} answers, "
            f"{one['wrong']} wrong, {one['failed']} failed{_codes(one)}; "
            f"p50 {one['p50_ms']} ms, p95 {one['p95_ms']} ms; engine "
            f"{one['engine_mb_before']} MB before and {one['engine_mb_after']} MB after.",
        ]
    return "\n".join(parts)


def _codes(held: Mapping[str, Any]) -> str:
    """With which codes requests failed, where that was kept."""
    told = ", ".join(f"{count} {code}" for code, count in held.get("failures", {}).items())
    return f" ({told})" if told else ""


def _shared(held: Mapping[str, Any]) -> str:
    """How busy the machine was besides, which times and ratios both suffer from."""
    loads = [f"{name} {one['load']}" for name, one in held.items() if "load" in one]
    if loads:
        return f"Processes that wanted the machine while it measured (load average): {', '.join(loads)}."
    return "The machine was used by others too." if any(one.get("clock") == "cpu" for one in held.values()) else ""


def _batch_table(held: Mapping[str, Any]) -> list[str]:
    told = [
        f"A batch of {ROWS} over the base's forward (aim: at most 1.10, flat). ViT of {held['parameters'] / 1e6:.1f} M at "
        f"224 px, {held['dtype']}, rank 8 on all linear layers; {held['hardware']}; {held['rounds']} rounds interleaved, "
        f"{held['clock']} clock, medians of ratios, in brackets the ratio of the fastest rounds. "
        + (
            "Each timed run came right after an untimed one of the base."
            if held.get("after") == "base"
            else "The ways ran one behind the other: at 256 the base came after peft's single rows and was faster."
        ),
        "",
        "| resident | different ones in the batch | bank | peft mixed | peft switching |",
        "|---|---|---|---|---|",
    ]
    for line in held["lines"]:
        cells = [_ratio(line, name) for name in ("bank", "peft_mixed", "peft_switching")]
        told.append(f"| {line['resident']} | {line['distinct']} | {' | '.join(cells)} |")
    told += ["", f"Memory of one adapter: {held['adapter_kib']} KiB by count, {held['adapter_kib_measured']} KiB measured."]
    return told


def _ratio(line: Mapping[str, Any], name: str) -> str:
    return f"{line[name]:.2f} ({line[f'{name}_fastest']:.2f})" if name in line else ""


def _http_table(held: Mapping[str, Any]) -> list[str]:
    told = [
        f"{held['registered']} adapters of {held['adapter_kib']} KiB registered, {held['clients']} clients in a closed loop; "
        f"checkpoint `{held['checkpoint']}`, {held['hardware']}. Others: where an adapter comes from that has no place.",
        "",
        "| resident of all | others | traffic | p50 ms | p95 ms | first asked for: p50, p95 ms | engine MB before, after |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in held["lines"]:
        first = f"{one['first_time_p50_ms']}, {one['first_time_p95_ms']}"
        memory = f"{one['engine_mb_before']}, {one['engine_mb_after']}"
        resident = f"{one['resident']} ({one['resident'] / held['registered']:.0%})"
        cells = (resident, one["others"], one["traffic"], one["p50_ms"], one["p95_ms"], first, memory)
        told.append("| " + " | ".join(map(str, cells)) + " |")
    return told


def write_table(results: Path = RESULTS) -> None:
    """Put the section into docs/benchmarks.md."""
    put_section("adapters", table(json.loads(results.read_text(encoding="utf-8"))))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description="What many adapters cost")
    parser.add_argument("part", choices=("batch", "http", "right", "table"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=PRECISION)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--checkpoint", default="tiny", help="for `http` and `right`: tiny, bundled, or a folder")
    parser.add_argument("--adapters", type=int, help="registered; 1000 for `http`, 128 for `right`")
    parser.add_argument("--resident", type=int, nargs="*", default=[1000, 256, 64])
    parser.add_argument("--clients", type=int, help="16 for `http`, 64 for `right`")
    parser.add_argument("--requests", type=int, default=1600)
    parser.add_argument("--seconds", type=float, default=60.0)
    chosen = parser.parse_args()
    if chosen.part == "batch":
        torch.set_num_threads(chosen.threads)
        clock = time.process_time if chosen.clock == "cpu" else time.perf_counter
        found = in_a_batch(chosen.rounds, getattr(torch, chosen.dtype), clock, not chosen.no_peft)
        keep(f"batch, {chosen.dtype}", {**found, "clock": chosen.clock, "load": load()})
    elif chosen.part == "http":
        through_http(chosen.checkpoint, chosen.adapters or 1000, chosen.resident, chosen.clients or 16, chosen.requests)
    elif chosen.part == "right":
        keep("right", right_answers(chosen.checkpoint, chosen.adapters or 128, chosen.clients or 64, chosen.seconds))
    if RESULTS.exists():
        write_table()


if __name__ == "__main__":
    main()
