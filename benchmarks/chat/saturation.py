"""Useful tokens a second while 16 people ask without a pause."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapters.bank import AdapterBank
from adapters.lora import LoraPair, LoraSpec, LoraWeights, find_linear
from benchmarks.chat.bench import ASKERS, Bench, Question, fault
from serving.generation import ChatLane
from serving.messages import Outcome

ADAPTERS, RANK = 8, 8


def saturated(bench: Bench, asked: Sequence[Question], *, is_exact: bool) -> dict[str, float]:
    """Each way's rate; is_exact: raise where the lane says something else than transformers."""
    begun = bench.clock()
    alone = [bench.generate([one])[0] for one in asked]
    one_by_one_s = bench.clock() - begun
    begun = bench.clock()
    for first in range(0, len(asked), ASKERS):
        bench.generate(asked[first : first + ASKERS])
    static_s = bench.clock() - begun
    lane_s, outcomes = through(bench, bench.lane(), asked, 0)
    bank = bank_of(bench)
    adapted_s, adapted = through(bench, bench.lane(bank=bank), asked, ADAPTERS)
    bank.close()
    tokens = sum(map(len, alone))
    equal = [bench.text(ids) == told(outcomes, number) for number, ids in enumerate(alone)]
    if is_exact and not all(equal):
        raise AssertionError(f"answers {[number for number, one in enumerate(equal) if not one]} differ from transformers'")
    return {
        "one_by_one": tokens / one_by_one_s,
        "static": tokens / static_s,
        "lane": count(outcomes) / lane_s,
        "lane_adapters": count(adapted) / adapted_s,
        "equal_answers": sum(equal) / len(equal),
        "tokens_of_an_answer": tokens / len(asked),
        "prompt_tokens": sum(len(bench.ids(one)) for one in asked) / len(asked),
    }


def through(bench: Bench, lane: ChatLane, asked: Sequence[Question], adapters: int) -> tuple[float, list[Outcome]]:
    """Seconds for all, 16 at a time, each through the base or one of the `adapters`; and what was said."""
    outcomes, waiting = list[Outcome](), list(range(len(asked)))
    begun = bench.clock()
    while waiting or len(lane):
        while waiting and len(lane) < ASKERS:
            number = waiting.pop(0)
            bench.ask(lane, number, asked[number], 1 + number % adapters if adapters else 0)
        outcomes += lane.turn(0.0, fault)
    return bench.clock() - begun, outcomes


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
