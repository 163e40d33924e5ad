"""Seconds from a question's arrival to its first token, open loop, while others ask.

Both ways are given the same Poisson arrivals, at 70 % of the questions a second that static batches can answer and at 70 %
of what the lane can. A clock runs while something computes and jumps to the next arrival when nothing does.

A static batch takes all who wait when it begins, at most 16, and runs to its end; those who come later wait for that.
`first`: its first tokens are computed. `told`: the batch has ended, which is when transformers can tell them, as its
streamers refuse batches.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.chat.bench import ASKERS, Bench, Question, fault

LOAD = 0.7


def under_load(bench: Bench, asked: Sequence[Question], per_s: Mapping[str, float], seed: int) -> dict[str, float]:
    """per_s: questions a second that "static" and "lane" can answer."""
    found: dict[str, float] = {}
    for whose, rate in per_s.items():
        times = arrivals(len(asked), LOAD * rate, seed)
        first, ends = static_first_tokens(bench, asked, times)
        lane = lane_first_tokens(bench, asked, times)
        median = statistics.median(lane)
        found |= {
            f"at_{whose}s_load/static_first_s": statistics.median(first),
            f"at_{whose}s_load/static_told_s": statistics.median(ends),
            f"at_{whose}s_load/lane_first_s": median,
            f"at_{whose}s_load/static_first_p99_s": _p99(first),
            f"at_{whose}s_load/lane_first_p99_s": _p99(lane),
            f"at_{whose}s_load/lane_over_static": median / statistics.median(first),
            f"at_{whose}s_load/lane_over_static_told": median / statistics.median(ends),
        }
    return found


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    draw, at = random.Random(seed), 0.0
    return [at := at + draw.expovariate(rate) for _ in range(count)]


def static_first_tokens(bench: Bench, asked: Sequence[Question], times: Sequence[float]) -> tuple[list[float], list[float]]:
    """Of each question: seconds from arrival to its batch's first tokens, and to the end of the batch."""
    firsts, ends, now, at = list[float](), list[float](), 0.0, 0
    while at < len(asked):
        now = max(now, times[at])
        batch = [number for number in range(at, len(asked)) if times[number] <= now][:ASKERS]
        begun, first = bench.clock(), list[float]()
        bench.generate([asked[number] for number in batch], lambda first=first: first.append(bench.clock()))  # type: ignore[misc]
        end = bench.clock()
        firsts += [now + first[0] - begun - times[number] for number in batch]
        ends += [now + end - begun - times[number] for number in batch]
        now, at = now + end - begun, at + len(batch)
    return firsts, ends


def lane_first_tokens(bench: Bench, asked: Sequence[Question], times: Sequence[float]) -> list[float]:
    lane, now, at, firsts = bench.lane(), 0.0, 0, dict[int, float]()
    while at < len(asked) or len(lane):
        if not len(lane):
            now = max(now, times[at])
        while at < len(asked) and times[at] <= now:
            bench.ask(lane, at, asked[at])
            at += 1
        begun, due = bench.clock(), times[at] - now if at < len(asked) else float("inf")
        outcomes = lane.turn(0.0, fault, lambda begun=begun, due=due: bench.clock() - begun >= due)  # type: ignore[misc]
        now += bench.clock() - begun
        for one in outcomes:
            firsts.setdefault(one.request_id, now - times[one.request_id])
    return [firsts[number] for number in range(len(asked))]


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]
