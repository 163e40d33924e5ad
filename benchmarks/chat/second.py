"""Seconds to the first token of the first and the second question about one film."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.chat.bench import QUESTIONS, Bench, Clock, fault
from foundation.phantom import make_phantom
from serving.config import EngineConfig, Precision
from serving.engine import Engine
from serving.messages import ChatTurn, Film, Request


def in_lane(bench: Bench, film: int) -> dict[str, float]:
    """Through the lane alone, nobody else asking."""
    lane, took = bench.lane(1 << 26), list[float]()
    for number in (2 * film, 2 * film + 1):
        asked = bench.question(number, film=film)
        begun = bench.clock()
        bench.ask(lane, number, asked)
        lane.turn(0.0, fault)
        took.append(bench.clock() - begun)
        while len(lane):
            lane.turn(0.0, fault)
    return _pair(took)


def in_engine(clock: Clock, films: int, precision: Precision) -> list[dict[str, float]]:
    """Through the whole engine with the bundled model; made-up films, so the gate is left out."""
    engine = Engine.open(EngineConfig(threads=1, precision=precision))
    engine._tools = replace(engine._tools, gate=None)
    size, found = engine.backbone.contract.size, []
    for film in range(-1, films):  # the first one warms up
        grey = make_phantom(seed=film + 7, size=size).film
        shown = Film(np.repeat(grey[:, :, None], 3, 2), digest=f"{film + 1:064x}")
        took: list[float] = []
        for number, question in enumerate(QUESTIONS[:2]):
            begun = clock()
            for outcome in engine.answer(Request(number, "chat", film=shown, turns=(ChatTurn("user", question),))):
                if len(took) == number and "delta" in (outcome.value or {}):
                    took.append(clock() - begun)
        if film >= 0:
            found.append(_pair(took))
    return found


def _pair(took: list[float]) -> dict[str, float]:
    first, second = took
    return {"first_s": first, "second_s": second, "first_over_second": first / second}
