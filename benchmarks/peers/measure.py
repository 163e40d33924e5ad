"""One round of one server: its figures, and the bare model's just before and just after, so that drift meets both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import PRECISION
from benchmarks.load.films import Ask
from benchmarks.load.server import Served
from benchmarks.peers.bare import BareModel
from benchmarks.peers.drive import closed, opened, status_of

Row = dict[str, float | None]


@dataclass(frozen=True)
class Plan:
    clients: tuple[int, ...] = (16, 32)
    rounds: int = 3
    seconds: float = 6.0
    precision: str = PRECISION
    cores: int = 2


@dataclass(frozen=True)
class Bare:
    """Films a second of the offline pipeline (and of one lane a core); seconds of one call with decode."""

    pipeline_rate: float
    lanes_rate: float
    call_s: float

    @classmethod
    def measured(cls, model: BareModel, films: Path, plan: Plan) -> Bare:
        """A call may use one core or all, whichever is faster."""
        seconds = plan.seconds / 2
        calls = [model.ask("bare", films, seconds / 2, threads)["median_s"] for threads in {1, plan.cores}]
        rates = [model.ask(way, films, seconds, plan.cores)["rate"] for way in ("pipeline", "lanes")]
        return cls(rates[0], rates[1], min(calls))

    def between(self, other: Bare) -> Bare:
        ends = (self, other)
        return Bare(
            *(statistics.mean(getattr(end, name) for end in ends) for name in ("pipeline_rate", "lanes_rate", "call_s"))
        )


async def lives(served: Served, asked: Ask) -> bool:
    return await status_of(served.url, asked) == 200


def measure(served: Served, model: BareModel, films: Path, good: Sequence[Ask], bad: Sequence[Ask], plan: Plan) -> Row:
    """Figures by name; None for one that cannot be had. Broken films come last: not every server outlives them."""
    row: Row = {"first_answer_s": served.started_s, "memory_mb": served.memory_mb["pss"]}
    before = Bare.measured(model, films, plan)
    crowd = plan.clients[0]
    for clients in plan.clients:
        run = closed(served.url, good, clients, plan.seconds)
        row |= {f"rate_{clients}": run.rate, f"lost_{clients}": float(run.lost)}
    one = closed(served.url, good, 1, plan.seconds)
    saturation = row[f"rate_{crowd}"] or 0.0
    queue = opened(served.url, good, 0.7 * saturation, plan.seconds) if saturation else None
    leaving = closed(served.url, good, crowd, plan.seconds, leaving=0.5)
    row["memory_end_mb"] = served.memory_mb["pss"]
    bare = before.between(Bare.measured(model, films, plan))
    row |= {
        "pipeline_rate": bare.pipeline_rate,
        "bare_ms": 1000 * bare.call_s,
        "p50_1_ms": _times(one.p50_s, 1000),
        "p50_1/bare": _times(one.p50_s, 1 / bare.call_s),
        "rate_open": 0.7 * saturation,
        "p99_open_ms": _times(queue.p99_s if queue else None, 1000),
        "p99_open/bare": _times(queue.p99_s if queue else None, 1 / bare.call_s),
        "leaving_rate": leaving.rate,
        "leaving/saturation": leaving.rate / saturation if saturation else None,
    }
    for clients in plan.clients:
        rate = row[f"rate_{clients}"]
        row[f"rate_{clients}/pipeline"] = _times(rate, 1 / bare.pipeline_rate)
        row[f"rate_{clients}/best_offline"] = _times(rate, 1 / max(bare.pipeline_rate, bare.lanes_rate))
    for share in (0.01, 0.2):
        run, name = closed(served.url, good, crowd, plan.seconds, bad=bad, share=share), f"broken_{100 * share:.0f}"
        row |= {f"{name}_lost": float(run.lost), f"{name}_refused": float(run.refused), f"{name}_rate": run.rate}
    return row


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
