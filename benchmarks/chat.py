"""The chat lane against the same decoder in transformers: one by one, in static batches, and under load.

    python -m benchmarks.chat [--model bundled|random25m] [--rounds N] [--clock cpu|wall] [--json]

    tokens/s            16 askers, mixed lengths, no gap: `generate` one by one, `generate` in static batches of 16, the lane
    first token         Poisson arrivals at 70 % of what each can do; a static batch takes all who wait (at most 16)
    second question     the lane alone and, with the bundled model, the whole engine (film, findings, heat map, decoder)

All compute in one thread. `--clock cpu` counts the process's own seconds, for a machine that others use too. The rounds are
interleaved; told are medians of each round's ratio. Every greedy answer of the lane is compared with `generate`'s.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundation.checkpoint import open_checkpoint
from foundation.decoder import Decoder, DecoderShape
from foundation.lexicon import FINDINGS
from foundation.prompt import FindingState, Turn
from serving.chat_work import Opening, Picture
from serving.evidence import Evidence
from serving.generation import ChatLane
from serving.messages import Film, Outcome, Request, Sampling

ASKERS = 16
QUESTIONS = (
    "Is there a pleural effusion?",
    "Where is the effusion?",
    "Describe the film.",
    "Is the heart enlarged?",
    "What do you see in the left lung?",
    "Is it normal?",
)
Clock = Callable[[], float]


@dataclass(frozen=True)
class Question:
    turns: tuple[Turn, ...]
    picture: Picture
    limit: int
    film: str


@dataclass(frozen=True)
class Bench:
    """What is measured: a decoder, and its clock."""

    decoder: Decoder
    patches: int
    clock: Clock

    def question(self, number: int, film: int | None = None) -> Question:
        """Another film each, unless one is named; 8 to 128 tokens at most."""
        draw = random.Random(number)
        seed = number if film is None else film
        tokens = torch.randn(self.patches, self.decoder.image_width, generator=torch.Generator().manual_seed(seed))
        shade = random.Random(seed)
        findings = tuple(FindingState(name, (p := shade.random() ** 3), p > 0.4) for name in FINDINGS[:13])
        turns = (Turn("user", draw.choice(QUESTIONS)),)
        return Question(turns, Picture(tokens, findings), draw.choice((8, 16, 32, 64, 96, 128)), f"{seed:064x}")

    def ids(self, one: Question) -> list[int]:
        return self.decoder.prompt_ids(one.turns, one.picture.findings, self.patches)

    # transformers

    @torch.inference_mode()
    def generate(self, asked: Sequence[Question], on_first: Callable[[], None] | None = None) -> list[list[int]]:
        """`generate` over one batch, padded on the left, until the longest answer is written."""
        from transformers import LogitsProcessor, LogitsProcessorList

        class Watch(LogitsProcessor):  # type: ignore[misc]
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                if on_first is not None and input_ids.shape[1] <= 1:
                    on_first()
                return scores

        decoder = self.decoder
        embedded = [decoder.embed(self.ids(one), one.picture.tokens)[0] for one in asked]
        longest = max(map(len, embedded))
        padded = torch.stack([torch.nn.functional.pad(one, (0, 0, longest - len(one), 0)) for one in embedded])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in embedded])
        made = decoder.model.generate(
            inputs_embeds=padded,
            attention_mask=mask,
            max_new_tokens=max(one.limit for one in asked),
            do_sample=False,
            eos_token_id=decoder.end_id,
            pad_token_id=decoder.tokenizer.special_ids["[PAD]"],
            suppress_tokens=list(decoder.tokenizer.silent_ids),
            logits_processor=LogitsProcessorList([Watch()]),
        )
        return [self._useful(row.tolist(), one) for row, one in zip(made, asked, strict=True)]

    def _useful(self, ids: list[int], one: Question) -> list[int]:
        end = ids.index(self.decoder.end_id) + 1 if self.decoder.end_id in ids else len(ids)
        return ids[: min(end, one.limit)]

    # The lane

    def lane(self, cached_bytes: int = 0) -> ChatLane:
        return ChatLane(self.decoder, 4, chats=ASKERS, cached_bytes=cached_bytes)

    def ask(self, lane: ChatLane, number: int, one: Question) -> None:
        """Without reliance, which `generate` does not offer."""
        film = Film(np.zeros(0, np.uint8), one.film)
        sampling = Sampling(max_tokens=one.limit)
        lane.start(Request(number, "chat", film=film, sampling=sampling), Opening(one.turns, one.picture, Evidence(True)), dict)


def fault(number: int, error: Exception, trace: str) -> Outcome:
    raise error


def told(outcomes: Sequence[Outcome], number: int) -> str:
    return "".join((one.value or {}).get("delta", "") for one in outcomes if one.request_id == number)


# Throughput


def saturated(bench: Bench, asked: Sequence[Question]) -> dict[str, float]:
    """Useful tokens a second of each way; raises where the lane said something else than `generate`."""
    begun = bench.clock()
    alone = [bench.generate([one])[0] for one in asked]
    one_by_one_s = bench.clock() - begun
    begun = bench.clock()
    for first in range(0, len(asked), ASKERS):
        bench.generate(asked[first : first + ASKERS])
    static_s = bench.clock() - begun
    lane, outcomes, waiting = bench.lane(), list[Outcome](), list(range(len(asked)))
    begun = bench.clock()
    while waiting or len(lane):
        while waiting and len(lane) < ASKERS:
            bench.ask(lane, waiting[0], asked[waiting.pop(0)])
        outcomes += lane.turn(0.0, fault)
    lane_s = bench.clock() - begun
    tokens = sum(map(len, alone))
    for number, (one, ids) in enumerate(zip(asked, alone, strict=True)):
        expected = bench.decoder.generate(one.turns, one.picture.findings, one.picture.tokens, Sampling(max_tokens=one.limit))
        if list(expected.token_ids) != ids or told(outcomes, number) != expected.text:
            raise AssertionError(f"answer {number} differs from transformers'")
    return {"one_by_one": tokens / one_by_one_s, "static": tokens / static_s, "lane": tokens / lane_s, "tokens": tokens}


# Under load: a clock that runs while something computes and jumps to the next arrival when nothing does


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    draw, at = random.Random(seed), 0.0
    return [at := at + draw.expovariate(rate) for _ in range(count)]


def static_first_tokens(bench: Bench, asked: Sequence[Question], times: Sequence[float]) -> tuple[list[float], list[float]]:
    """Seconds from arrival to the batch's first token, and to the end of the batch, when its answers can be told."""
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
        begun = bench.clock()
        outcomes = lane.turn(0.0, fault)
        now += bench.clock() - begun
        for one in outcomes:
            firsts.setdefault(one.request_id, now - times[one.request_id])
    return [firsts[number] for number in range(len(asked))]


def under_load(bench: Bench, asked: Sequence[Question], per_s: dict[str, float], seed: int) -> dict[str, float]:
    """Median seconds to the first token, each way at 70 % of the questions a second that it can answer."""
    static, ends = static_first_tokens(bench, asked, arrivals(len(asked), 0.7 * per_s["static"], seed))
    lane = lane_first_tokens(bench, asked, arrivals(len(asked), 0.7 * per_s["lane"], seed))
    same = lane_first_tokens(bench, asked, arrivals(len(asked), 0.7 * per_s["static"], seed))
    return {
        "static_first_s": statistics.median(static),
        "static_told_s": statistics.median(ends),
        "lane_first_s": statistics.median(lane),
        "lane_at_statics_rate_s": statistics.median(same),
        "lane_p99_s": sorted(lane)[int(0.99 * (len(lane) - 1))],
        "static_p99_s": sorted(static)[int(0.99 * (len(static) - 1))],
    }


# The second question about a film


def second_question(bench: Bench, film: int) -> dict[str, float]:
    """Seconds to the first token of two questions about one film, through the lane alone."""
    lane, took = bench.lane(1 << 26), []
    for number in (2 * film, 2 * film + 1):
        begun = bench.clock()
        bench.ask(lane, number, bench.question(number, film=film))
        lane.turn(0.0, fault)
        took.append(bench.clock() - begun)
        while len(lane):
            lane.turn(0.0, fault)
    return {"first_s": took[0], "second_s": took[1]}


def engine_second_questions(clock: Clock, films: int) -> list[dict[str, float]]:
    """The same through the whole engine with the bundled model; made-up films, so the gate is left out."""
    from dataclasses import replace

    from foundation.phantom import make_phantom
    from serving.config import EngineConfig
    from serving.engine import Engine
    from serving.messages import ChatTurn

    engine = Engine.open(EngineConfig(threads=1))
    engine._tools = replace(engine._tools, gate=None)
    size, found = engine.backbone.contract.size, []
    for film in range(-1, films):  # the first one warms up
        grey = make_phantom(seed=film + 7, size=size).film
        shown = Film(np.repeat(grey[:, :, None], 3, 2), digest=f"{film + 1:064x}")
        took = []
        for number, question in enumerate(QUESTIONS[:2]):
            begun = clock()
            for outcome in engine.answer(Request(number, "chat", film=shown, turns=(ChatTurn("user", question),))):
                if len(took) == number and "delta" in (outcome.value or {}):
                    took.append(clock() - begun)
        if film >= 0:
            found.append({"first_s": took[0], "second_s": took[1]})
    return found


# All of it


def random_25m(folder: Path) -> Decoder:
    """A Llama of 25 M random weights in the layout of the bundled one, its film 100 patches."""
    tokenizer = open_checkpoint("bundled").folder / "decoder" / "tokenizer.json"
    size = json.loads(tokenizer.read_text())["model"]["vocab"]
    added = json.loads(tokenizer.read_text()).get("added_tokens", [])
    vocabulary = max([*size.values(), *(one["id"] for one in added)]) + 1
    torch.manual_seed(0)
    shape = DecoderShape(384, vocabulary, width=384, layers=10, heads=6, key_value_heads=2, mlp_width=1536, context=1024)
    decoder = Decoder.create(shape, tokenizer)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, 0.0, 0.04)
    return decoder


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def measure(model: str, rounds: int, questions: int, clock: Clock, log: Callable[[str], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        bundled = open_checkpoint("bundled").folder
        decoder = Decoder.load(bundled) if model == "bundled" else random_25m(Path(place))
    bench = Bench(decoder, 16 if model == "bundled" else 100, clock)
    bench.generate([bench.question(1)])
    saturation, load, second = [], [], []
    for number in range(rounds):
        asked = [bench.question(1000 * number + one) for one in range(questions)]
        rates = saturated(bench, asked)
        saturation.append(
            {**rates, "lane/one_by_one": rates["lane"] / rates["one_by_one"], "lane/static": rates["lane"] / rates["static"]}
        )
        log(f"{model} round {number + 1}: {saturation[-1]}")
        per_s = {way: rates[way] * questions / rates["tokens"] for way in ("static", "lane")}
        waits = under_load(bench, asked, per_s, number)
        load.append({**waits, "lane/static": waits["lane_first_s"] / waits["static_first_s"]})
        log(f"{model} round {number + 1}: {load[-1]}")
        for film in range(3):
            took = second_question(bench, 1000 * number + film)
            second.append({**took, "first/second": took["first_s"] / took["second_s"]})
        log(f"{model} round {number + 1}: {second[-1]}")
    found = {
        "parameters": sum(one.numel() for one in decoder.model.parameters()),
        "saturated_tokens_per_s": medians(saturation),
        "first_token_at_70_percent": medians(load),
        "second_question_lane": medians(second),
    }
    if model == "bundled":
        whole = [
            {**one, "first/second": one["first_s"] / one["second_s"]} for one in engine_second_questions(clock, 2 * rounds)
        ]
        found["second_question_engine"] = medians(whole)
    return found


def hardware() -> str:
    lines: Iterator[str] = iter(Path("/proc/cpuinfo").read_text().splitlines()) if Path("/proc/cpuinfo").exists() else iter(())
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, one thread, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The chat lane against transformers")
    parser.add_argument("--model", choices=("bundled", "random25m", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if chosen.clock == "cpu" else time.perf_counter
    models = ("bundled", "random25m") if chosen.model == "both" else (chosen.model,)
    log = (lambda line: None) if chosen.json else print
    found = {model: measure(model, chosen.rounds, chosen.questions, clock, log) for model in models}
    print(json.dumps({"hardware": hardware(), "clock": chosen.clock, "rounds": chosen.rounds, **found}, indent=2))


if __name__ == "__main__":
    main()
