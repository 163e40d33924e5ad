"""The server under load against the bare model on the same machine, A B A B in one run; medians of each round's ratio.

    python -m benchmarks.load                              all forms and sizes, five rounds, about half an hour
    python -m benchmarks.load --rounds 1 --seconds 3 --short                     one form and size, about a minute

    saturated     closed loop of 16 and of 32 clients, over the offline pipeline and over lanes (see `offline.py`)
    one client    median seconds, over the bare call with decode
    open loop     99th percentile at 70 % of the saturation just seen, Poisson arrivals, over the bare call
    leaving       half of the requests' callers leave within a quarter of a second: good answers to the others, over saturation;
                  the same of a server that wastes nothing (see `ideal.py`), and what went through the trunk for nobody
    broken        1 % and 20 % of the films cut off in the middle: good films without a good answer
    start         from the command to the first answer, and memory then and at the end

The model is an open_clip ViT of 12.7 M random weights at 224 px: time does not depend on them. Told beside each run is
how much of the cores other programs took meanwhile; figures from a busy machine are not worth much.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import PRECISION, keep
from benchmarks.load.clients import Connection, Tally, closed_loop, in_turn, open_loop
from benchmarks.load.films import FORMS, Ask, Form, asks, broken, films
from benchmarks.load.ideal import ideal
from benchmarks.load.offline import Offline, offline
from benchmarks.load.server import HOUSE, Served, cpu_s, forwarded_rows, serve
from benchmarks.load.table import markdown
from benchmarks.section import put_section
from training.measuring.report import hardware

VIT_12M = {"image_size": 224, "layers": 10, "width": 320, "head_width": 64, "patch_size": 16}
MANIFEST = HOUSE.parent / "shared/data/chest/manifest.jsonl"
FILMS = 48
SIZES = (320, 2048)
STAY_S = 0.25  # the longest that a caller stays who leaves


@dataclass(frozen=True)
class Plan:
    rounds: int = 5
    seconds: float = 6.0
    cores: int = 2
    precision: str = PRECISION
    cases: tuple[tuple[Form, int], ...] = tuple((form, size) for size in SIZES for form in FORMS)
    options: tuple[str, ...] = ()
    manifest: Path = MANIFEST


@dataclass
class Case:
    """One form and size: what every round found, by name."""

    form: Form
    size: int
    rounds: list[dict[str, float]] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {key: statistics.median(row[key] for row in self.rounds) for key in self.rounds[0]}


class Bench:
    """A server, the bare model and the films of one case; each method is one run and returns figures by name."""

    def __init__(self, plan: Plan, served: Served, bare: Offline, case: Case, folder: Path) -> None:
        self.plan, self.served, self.bare, self.folder = plan, served, bare, folder
        files = films(case.size, FILMS, plan.manifest)
        for number, file in enumerate(files):
            (folder / f"{number:03d}.jpg").write_bytes(file)
        host = served.url.partition("//")[2]
        self.good = asks(files, case.form, host)
        self.bad = [Ask(one.raw, True) for one in asks([broken(file) for file in files], case.form, host)]

    def round(self) -> dict[str, float]:
        """All figures once. The bare model before and after, so that a machine that drifts does so for both."""
        row: dict[str, float] = {}
        with _others(row, self.served):
            lanes = [self._bare("lanes")]
            pipeline = self._bare("pipeline")
            for clients in (16, 32):
                row |= self._saturated(clients)
            lanes.append(self._bare("lanes"))
            bare = self._bare("bare")
            one = self._closed(1)
            bare_again = self._bare("bare")
            row |= self._open(0.7 * row["rate_16"]) | self._leaving(row["rate_16"]) | self._broken(0.01) | self._broken(0.2)
        bare_s = min(bare["median_s"], bare_again["median_s"])
        lanes_rate = statistics.mean(way["rate"] for way in lanes)
        best = max(lanes_rate, pipeline["rate"])
        row |= {
            "pipeline_rate": pipeline["rate"],
            "lanes_rate": lanes_rate,
            "offline_cpu_ms": min(pipeline["cpu_ms"], *(way["cpu_ms"] for way in lanes)),
            "bare_ms": 1000 * bare_s,
            "p50_1_ms": 1000 * one.quantile(0.5),
            "p50_1/bare": one.quantile(0.5) / bare_s,
            "p99_open/bare": row["p99_open_ms"] / 1000 / bare_s,
        }
        for clients in (16, 32):
            row[f"rate_{clients}/pipeline"] = row[f"rate_{clients}"] / pipeline["rate"]
            row[f"rate_{clients}/best_offline"] = row[f"rate_{clients}"] / best
        return row

    def _saturated(self, clients: int) -> dict[str, float]:
        server, own = self.served.cpu_s, time.process_time()
        tally = self._closed(clients)
        answers = max(1, len(tally.latencies_s))
        return {
            f"rate_{clients}": tally.rate,
            f"p50_{clients}_ms": 1000 * tally.quantile(0.5),
            f"server_cpu_ms_{clients}": 1000 * (self.served.cpu_s - server) / answers,
            f"client_cpu_ms_{clients}": 1000 * (time.process_time() - own) / answers,
            f"lost_{clients}": tally.lost,
        }

    def _open(self, rate: float) -> dict[str, float]:
        tally = asyncio.run(open_loop(self.served.url, in_turn(self.good), rate, self.plan.seconds))
        return {
            "rate_open": rate,
            "p50_open_ms": 1000 * tally.quantile(0.5),
            "p99_open_ms": 1000 * tally.quantile(0.99),
            "lost_open": tally.lost + tally.busy,
        }

    def _leaving(self, saturation: float) -> dict[str, float]:
        before = forwarded_rows(self.served.url)
        tally = self._closed(16, leaving=0.5, leave_after_s=STAY_S)
        rows = {whom: count - before.get(whom, 0.0) for whom, count in forwarded_rows(self.served.url).items()}
        best = ideal(saturation, clients=16, leaving=0.5, leave_after_s=STAY_S, cores=self.plan.cores).stayed
        return {
            "leaving_rate": tally.rate,
            "leaving_left": tally.left,
            "leaving_lost": tally.lost,
            "leaving/saturation": tally.rate / saturation,
            "leaving_ideal": best,
            "leaving/ideal": tally.rate / saturation / best,
            "leaving_reached/saturation": tally.rate / saturation + tally.in_time / tally.seconds / saturation,
            "leaving_in_vain": rows.get("nobody", 0.0) / max(1e-9, sum(rows.values())),
        }

    def _broken(self, share: float) -> dict[str, float]:
        tally = self._closed(16, share=share)
        name = f"broken_{100 * share:.0f}"
        return {f"{name}_lost": tally.lost + tally.busy, f"{name}_refused": tally.refused, f"{name}_rate": tally.rate}

    def _closed(self, clients: int, share: float = 0.0, **leaving: float) -> Tally:
        pick = in_turn(self.good, broken=self.bad, share=share)
        return asyncio.run(closed_loop(self.served.url, pick, clients, self.plan.seconds, **leaving))

    def _bare(self, way: str) -> dict[str, float]:
        """The bare call may use one core or all of them, whichever is faster."""
        seconds = self.plan.seconds / 2
        if way != "bare":
            return self.bare.ask(way, self.folder, seconds, self.plan.cores)
        tried = [self.bare.ask(way, self.folder, seconds / 2, threads) for threads in {1, self.plan.cores}]
        return min(tried, key=lambda found: found["median_s"])


@contextmanager
def _others(row: dict[str, float], served: Served) -> Iterator[None]:
    """Note the share of our cores that went to programs other than this one and its children."""

    def now() -> tuple[float, float, float]:
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.split()[0] in cores]
        jiffies = [sum(map(int, line[1:9])) for line in lines]
        idle = [int(line[4]) + int(line[5]) for line in lines]
        own = cpu_s(os.getpid()) + sum(cpu_s(one) for one in _ours())
        return sum(jiffies) / 100, sum(idle) / 100, own

    begun = now()
    yield
    total, idle, own = (after - before for after, before in zip(now(), begun, strict=True))
    row["others_share"] = max(0.0, (total - idle - own) / total) if total else 0.0


def _ours() -> list[int]:
    from benchmarks.load.server import descendants

    return descendants(os.getpid())


def started(served: Served, plan: Plan, begun: float) -> dict[str, Any]:
    """How long it took from `begun` to the first good answer, with nothing beside the server, and what memory it has then."""
    form, size = plan.cases[0]
    (asked,) = asks(films(size, 1, plan.manifest), form, served.url.partition("//")[2])
    status = asyncio.run(Connection(served.url).send(asked))
    if status != 200:
        raise SystemExit(f"the first answer has status {status}")
    first_s = time.perf_counter() - begun
    return {"first_answer_s": first_s, "memory_mb": served.memory_mb, "listens_s": served.started_s}


def say(text: str) -> None:
    print(text, flush=True)


def run(plan: Plan, log: Callable[[str], None] = say) -> dict[str, Any]:
    from foundation.tiny import make_tiny_checkpoint

    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        checkpoint = make_tiny_checkpoint(home / "vit-12m", vision=VIT_12M)
        begun = time.perf_counter()
        options = ("--precision", plan.precision, *plan.options)
        with ExitStack() as open_now:
            served = open_now.enter_context(serve(checkpoint, home, options))
            starts = started(served, plan, begun)
            bare = open_now.enter_context(offline(checkpoint, plan.precision))
            cases = []
            for form, size in plan.cases:
                case = Case(form, size)
                folder = home / f"{form}-{size}"
                folder.mkdir()
                bench = Bench(plan, served, bare, case, folder)
                for number in range(plan.rounds):
                    case.rounds.append(bench.round())
                    log(f"{form} {size} round {number + 1}: {json.dumps(_rounded(case.rounds[-1]))}")
                cases.append(case)
            starts["memory_mb_at_the_end"] = served.memory_mb
    return {
        "hardware": hardware(),
        "plan": {"rounds": plan.rounds, "seconds": plan.seconds, "precision": plan.precision, "options": list(plan.options)},
        "start": starts,
        "cases": [{"form": case.form, "size": case.size, **_rounded(case.medians())} for case in cases],
    }


def _rounded(row: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in row.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of each run")
    parser.add_argument("--precision", default=Plan.precision)
    parser.add_argument("--short", action="store_true", help="320 px as base64 only")
    parser.add_argument("--case", action="append", metavar="FORM:SIZE", help="e.g. multipart:2048; may be repeated")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help="real films; phantoms where it is not there")
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    parser.add_argument("--table", type=Path, help="write them into this page, between its markers")
    parser.add_argument("options", nargs="*", help="further options of `vesalius serve`, after --")
    chosen = parser.parse_args(arguments)
    cases: tuple[tuple[Any, int], ...] = Plan.cases
    if chosen.short:
        cases = (("base64", 320),)
    if chosen.case:
        cases = tuple((form, int(size)) for form, _, size in (case.partition(":") for case in chosen.case))
    cores = len(os.sched_getaffinity(0))
    plan = Plan(chosen.rounds, chosen.seconds, cores, chosen.precision, cases, tuple(chosen.options), chosen.manifest)
    found = run(plan)
    print(markdown(found))
    if chosen.report:
        keep(found, chosen.report)
    if chosen.table:
        put_section("load" if plan.precision == "bfloat16" else "load-float32", markdown(found), chosen.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
