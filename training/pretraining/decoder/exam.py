"""The decoder's exam: greedy answers about films it was never taught with, marked against what was stated."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from foundation.decoder import Decoder
from foundation.prompt import Turn
from foundation.questions import interpret_question
from training.pretraining.decoder.agreement import agreement
from training.pretraining.decoder.conversations import conversation
from training.pretraining.decoder.facts import FilmFacts
from training.pretraining.decoder.film_bank import FilmBank
from training.pretraining.decoder.lessons import answer_logits, lesson_of
from training.pretraining.decoder.recipe import DecoderRecipe


@torch.inference_mode()
def examine(decoder: Decoder, bank: FilmBank, recipe: DecoderRecipe) -> dict[str, float]:
    """What greedy answers on films never seen are worth, as shares of the answers each is about.

    word for word: the answer taught, by kind of question. verdict, findings, percents, places: what the answer claims agrees
    with what was stated (`agreement.py`). Most answers are seen to be right in one forward; only the others are written out.
    """
    decoder.eval()
    tally = Tally()
    for number, start in enumerate(range(0, len(bank), recipe.batch)):
        rng = random.Random(77_000 + number)
        dialogues = []
        for row in range(start, min(start + recipe.batch, len(bank))):
            facts = bank.facts(row, rng)
            dialogues.append((row, facts, conversation(rng, facts, 4)))
        lesson = lesson_of(decoder, bank, dialogues)
        logits, targets = answer_logits(decoder, lesson)
        verdicts = iter(_whole_answers(logits.argmax(1) == targets, targets, decoder.end_id))
        for row, facts, pairs in dialogues:
            _mark_dialogue(decoder, bank.tokens[row].float(), facts, pairs, verdicts, tally)
    return tally.shares()


class Tally:
    """How many answers were right, under each name, of how many."""

    def __init__(self) -> None:
        self.asked, self.right = Counter[str](), Counter[str]()

    def add(self, name: str, is_right: bool | None) -> None:
        if is_right is not None:
            self.asked[name] += 1
            self.right[name] += is_right

    def shares(self) -> dict[str, float]:
        named = {name: round(self.right[name] / count, 4) for name, count in sorted(self.asked.items())}
        return {**named, "answers": self.asked["word for word"]}


def _mark_dialogue(
    decoder: Decoder,
    tokens: Tensor,
    facts: FilmFacts,
    pairs: Sequence[tuple[Turn, Turn]],
    verdicts: Iterator[bool],
    tally: Tally,
) -> None:
    turns: list[Turn] = []
    for asked, answered in pairs:
        earlier = [turn.text for turn in turns if turn.role == "user"]
        is_same = next(verdicts)
        tally.add("word for word", is_same)
        tally.add(f"word for word, {interpret_question(asked.text, earlier).kind}", is_same)
        turns.append(asked)
        said = answered.text if is_same else decoder.generate(turns, facts.stated, tokens).text
        found = agreement(asked.text, earlier, said, facts.stated or ()) if facts.stated is not None else None
        turns.append(answered)
        for name in ("verdict", "findings", "percents", "places") if found else ():
            tally.add(name, getattr(found, name))
            if found and found.kind == "describe":
                tally.add(f"{name}, describe", getattr(found, name))


def _whole_answers(is_right: Tensor, targets: Tensor, end_id: int) -> list[bool]:
    """One verdict an answer; answers lie one behind the other, each ending with `end_id`."""
    verdicts, begin = [], 0
    for end in (targets == end_id).nonzero().flatten().tolist():
        verdicts.append(bool(is_right[begin : end + 1].all()))
        begin = end + 1
    return verdicts
