"""Useful tokens a second while 16 people ask without a pause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from adapters.bank import AdapterBank
from adapters.lora import LoraPair, LoraSpec, LoraWeights, find_linear
from benchmarks.chat.bench import ASKERS, Bench, Clock, Question, fault
from serving.generation import ChatLane
from serving.messages import Outcome

ADAPTERS, RANK = 8, 8


def saturated(bench: Bench, asked: Sequence[Question], *, is_exact: bool) -> dict[str, float]:
    """Each way's rate; is_exact: raise where the lane says something else than transformers."""
    alone: list[list[int]] = []
    outcomes, adapted = list[Outcome](), list[Outcome]()
    bank = bank_of(bench)
    ways = {
        "one_by_one": one_by_one(bench, asked, alone),
        "static": in_batches(bench, asked),
        "lane": through(bench, bench.lane(), asked, 0, outcomes),
        "lane_adapters": through(bench, bench.lane(bank=bank), asked, ADAPTERS, adapted),
    }
    seconds = interleaved(bench.clock, ways)
    bank.close()
    tokens = sum(map(len, alone))
    equal = [bench.text(ids) == told(outcomes, number) for number, ids in enumerate(alone)]
    if is_exact and not all(equal):
        raise AssertionError(f"answers {[number for number, one in enumerate(equal) if not one]} differ from transformers'")
    said = {"lane": count(outcomes), "lane_adapters": count(adapted)}
    return {
        **{way: said.get(way, tokens) / seconds[way] for way in ways},
        "equal_answers": sum(equal) / len(equal),
        "tokens_of_an_answer": tokens / len(asked),
        "prompt_tokens": sum(len(bench.ids(one)) for one in asked) / len(asked),
    }


def interleaved(clock: Clock, ways: Mapping[str, Iterator[float]]) -> dict[str, float]:
    """Seconds of each way. A way gives, after each piece of its work, how much of it is done, 0 to 1.

    The one that is least far goes next, so that all meet the same machine, whatever else runs on it meanwhile.
    """
    done, seconds = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    while min(done.values()) < 1:
        way = min(done, key=lambda one: done[one])
        begun = clock()
        done[way] = next(ways[way])
        seconds[way] += clock() - begun
    return seconds


def one_by_one(bench: Bench, asked: Sequence[Question], alone: list[list[int]]) -> Iterator[float]:
    """Adds each answer's token ids to `alone`."""
    for number, one in enumerate(asked, start=1):
        alone += bench.generate([one])
        yield number / len(asked)


def in_batches(bench: Bench, asked: Sequence[Question]) -> Iterator[float]:
    for first in range(0, len(asked), ASKERS):
        bench.generate(asked[first : first + ASKERS])
        yield min(1.0, (first + ASKERS) / len(asked))


def through(bench: Bench, lane: ChatLane, asked: Sequence[Question], adapters: int, outcomes: list[Outcome]) -> Iterator[float]:
    """All questions, 16 at a time, each through the base or one of the `adapters`; adds what was said to `outcomes`."""
    waiting = list(range(len(asked)))
    while waiting or len(lane):
        while waiting and len(lane) < ASKERS:
            number = waiting.pop(0)
            bench.ask(lane, number, asked[number], 1 + number % adapters if adapters else 0)
        outcomes += lane.turn(0.0, fault)
        yield 1 - (len(waiting) + len(lane)) / len(asked)


def told(outcomes: Sequence[Outcome], number: int) -> str:
    return "".join((one.value or {}).get("delta", "") for one in outcomes if one.request_id == number)


def count(outcomes: Sequence[Outcome]) -> int:
    return sum(one.value["usage"]["completion_tokens"] for one in outcomes if one.is_final and one.value)


def bank_of(bench: Bench) -> AdapterBank:
    """Adapters on all linear maps of the blocks, with B zero: the same answers for all the work of adapters."""
    model, targets = bench.decoder.model, tuple(bench.decoder.lora_targets())
    bank = AdapterBank.over(model)
    for seed in range(ADAPTERS):
        draw = torch.Generator().manual_seed(seed)
        maps = {name: find_linear(model, name) for name in targets}
        pairs = {
            name: LoraPair(torch.randn(RANK, one.in_features, generator=draw), torch.zeros(one.out_features, RANK))
            for name, one in maps.items()
        }
        bank.install(LoraWeights(LoraSpec(targets, rank=RANK, alpha=RANK), pairs))
    return bank
