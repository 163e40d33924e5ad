"""Measures, prints, and with `--write` puts the results where docs are made from (see the package's docstring)."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.chat.bench import Bench, Clock, bundled, random_25m
from benchmarks.chat.load import under_load
from benchmarks.chat.saturation import saturated
from benchmarks.chat.second import in_engine, in_lane
from benchmarks.chat.table import section
from benchmarks.section import put_section
from training.measuring.report import hardware

MODELS: dict[str, Callable[[Clock, torch.dtype], Bench]] = {"bundled": bundled, "random25m": random_25m}
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "chat-lane.json"
ROUNDS = {"bundled": 3, "random25m": 2}
QUESTIONS = {"bundled": 48, "random25m": 32}  # a round; two static batches at least
FILMS = 3
Rows = list[dict[str, float]]


def measure(bench: Bench, rounds: int, questions: int, *, is_exact: bool, log: Callable[[str], None]) -> dict[str, Any]:
    """Medians over the rounds of every figure of a decoder."""
    warm = [bench.question(-number) for number in range(1, 3)]
    saturated(bench, warm, is_exact=is_exact)
    saturation, load, second = Rows(), Rows(), Rows()
    for number in range(rounds):
        asked = [bench.question(1000 * number + one) for one in range(questions)]
        rates = saturated(bench, asked, is_exact=is_exact)
        ways = [(way, peer) for way in ("lane", "lane_adapters") for peer in ("one_by_one", "static")]
        saturation.append({**rates, **{f"{way}_over_{peer}": rates[way] / rates[peer] for way, peer in ways}})
        log(f"round {number + 1}: {saturation[-1]}")
        per_s = {way: rates[way] / rates["tokens_of_an_answer"] for way in ("static", "lane")}
        load.append(under_load(bench, asked, per_s, number))
        log(f"round {number + 1}: {load[-1]}")
        second += [in_lane(bench, 1000 * number + film) for film in range(FILMS)]
    return {
        "parameters": sum(one.numel() for one in bench.decoder.model.parameters()),
        "rounds": rounds,
        "questions": questions,
        "saturated": medians(saturation),
        "load": medians(load),
        "second_in_lane": medians(second),
    }


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def write(measured: dict[str, Any], clock: str) -> None:
    """Add to what was written before for other models on the same machine and clock."""
    found = {"hardware": hardware(), "clock": clock, "measured": measured}
    if RESULTS.is_file():
        before = json.loads(RESULTS.read_text(encoding="utf-8"))
        if (before["hardware"], before["clock"]) == (found["hardware"], found["clock"]):
            found["measured"] = {**before["measured"], **measured}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    put_section("chat-lane", section(found))


def main() -> None:
    parser = argparse.ArgumentParser(description="The chat lane against transformers")
    parser.add_argument("--model", choices=(*MODELS, "both"), default="both")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} if left out")
    parser.add_argument("--questions", type=int, help=f"a round; {QUESTIONS} if left out")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--write", action="store_true", help="into docs/results/chat-lane.json and docs/benchmarks.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if chosen.clock == "cpu" else time.perf_counter
    is_exact, measured = chosen.precision == "float32", dict[str, Any]()
    for model in MODELS if chosen.model == "both" else (chosen.model,):
        bench = MODELS[model](clock, getattr(torch, chosen.precision))
        rounds, questions = chosen.rounds or ROUNDS[model], chosen.questions or QUESTIONS[model]
        found = measure(bench, rounds, questions, is_exact=is_exact, log=print)
        if model == "bundled":
            found["second_in_engine"] = medians(in_engine(clock, FILMS * rounds, chosen.precision))
        measured[f"{model}, {chosen.precision}"] = found
    print(json.dumps({"hardware": hardware(), "clock": chosen.clock, "measured": measured}, indent=2))
    if chosen.write:
        write(measured, chosen.clock)


if __name__ == "__main__":
    main()
