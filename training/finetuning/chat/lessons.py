"""The examples a chat adapter learns from: questions about films, and their twins that cannot be answered.

    real            the film, its question, its answer
    blank           the film's mean grey, the same question          -> it cannot be told
    shuffled        the film's cells in another order, same question -> it cannot be told
    false premise   the film; a question that takes for granted a finding the answers deny, or an organ a chest film
                    does not show                                     -> there is none; it cannot be told

Closed and open questions are drawn in the recipe's share; within each kind of question yes and no as often as they were
given, as often as each other, or in between. Questions made from labels join them, films of their own, drawn as they are.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from adapters.tasks.chat import CANNOT_TELL
from foundation.decoder import Decoder
from foundation.errors import InvalidRequest
from foundation.prompt import Turn
from foundation.questions import interpret_question
from training.finetuning.chat.stated import SeenFilm
from training.manifests.qa import QaRow
from training.pretraining.decoder.sentences import noun

Twin = Literal["real", "blank", "shuffled", "false premise"]
_WHERE = ("where is the {}?", "which side is the {} on?", "locate the {}", "in which lung is the {}?")
_SIZE = ("how large is the {}?", "how severe is the {}?", "how big is the {}?")
_ELSEWHERE = (
    "is the liver enlarged?", "where is the kidney stone?", "is there a brain tumor?", "how large is the spleen?",
    "is the appendix inflamed?", "which lobe of the brain is affected?", "is there midline shift?",
    "is there hydronephrosis?", "are the ventricles enlarged?", "is the knee fractured?",
)  # fmt: skip


@dataclass(frozen=True)
class TwinRecipe:
    """Shares of the draws, the rest being real: each 0 to 1, together below 1."""

    blank: float = 0.08
    shuffled: float = 0.08
    false_premise: float = 0.08

    def __post_init__(self) -> None:
        shares = (self.blank, self.shuffled, self.false_premise)
        if min(shares) < 0 or sum(shares) >= 1:
            raise InvalidRequest("The shares of twins must be 0 or more and together below 1.", param="twins")


@dataclass(frozen=True, eq=False)
class Shelf:
    """One film as the decoder gets it: views (the film itself first), its blank and its shuffle."""

    views: tuple[SeenFilm, ...]
    blank: SeenFilm | None = None
    shuffled: SeenFilm | None = None

    def of(self, twin: Twin, view: int = 0) -> SeenFilm:
        if twin in ("real", "false premise"):
            return self.views[view]
        seen = self.blank if twin == "blank" else self.shuffled
        assert seen is not None, "films that only join the lessons have no twins"
        return seen


@dataclass(frozen=True)
class Draw:
    """One example of an epoch. pair: place among the pairs, behind them those made from labels, or among the false premises."""

    pair: int
    twin: Twin = "real"
    view: int = 0


@dataclass(frozen=True, eq=False)
class FalsePremise:
    """A question about the film of pair `film` that rests on something untrue."""

    film: QaRow
    question: str
    answer: str


@dataclass(frozen=True, eq=False)
class Course:
    """Pairs and their false premises, drawn epoch by epoch; a pure function of seed and epoch.

    made: questions from labels, `made_share` of the real draws. evenness: see `balanced_weights`.
    """

    pairs: tuple[QaRow, ...]
    views: int
    twins: TwinRecipe
    closed_share: float
    seed: int
    premises: tuple[FalsePremise, ...] = field(default=())
    made: tuple[QaRow, ...] = ()
    made_share: float = 0.0
    evenness: float = 1.0

    def draws(self, epoch: int) -> list[Draw]:
        """As many as there are pairs, and so many made ones besides that they have their share of the real ones."""
        rng = random.Random(self.seed * 1_000_003 + epoch)
        weights = balanced_weights(self.pairs, self.closed_share, self.evenness)
        count, twins = len(self.pairs), self.twins
        kinds: list[tuple[Twin, float]] = [("blank", twins.blank), ("shuffled", twins.shuffled)]
        kinds += [("false premise", twins.false_premise if self.premises else 0.0)]
        drawn = [
            Draw(rng.randrange(len(self.premises) if twin == "false premise" else count), twin, rng.randrange(self.views))
            for twin, share in kinds
            for _ in range(round(share * count))
        ]
        real = rng.choices(range(count), weights, k=count - len(drawn))
        drawn += [Draw(pair, "real", rng.randrange(self.views)) for pair in real]
        if self.made and self.made_share:
            extra = round(len(real) * self.made_share / (1 - self.made_share))
            drawn += [Draw(count + rng.randrange(len(self.made))) for _ in range(extra)]
        rng.shuffle(drawn)
        return drawn

    def asked(self, draw: Draw) -> QaRow:
        """The question of a draw that is no false premise."""
        return self.pairs[draw.pair] if draw.pair < len(self.pairs) else self.made[draw.pair - len(self.pairs)]


def balanced_weights(pairs: Sequence[QaRow], closed_share: float, evenness: float = 1.0) -> list[float]:
    """One weight a pair: closed against open by `closed_share`; within each kind of closed question yes against no.

    evenness: 1 as often as no, 0 as often as it was answered; in between a mean of the two.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for place, pair in enumerate(pairs):
        if pair.is_closed:
            groups[pair.kind, pair.truth if pair.is_yes_no else "choice"].append(place)
            sizes[pair.kind] += 1
    closed, weights = sum(sizes.values()), [0.0] * len(pairs)
    share = closed_share if closed < len(pairs) else 1.0
    for (kind, answer), places in groups.items():
        both = [len(groups.get((kind, word), ())) for word in ("yes", "no")]
        even = sum(both) / 2 if answer != "choice" and all(both) else len(places)
        mass = evenness * even + (1 - evenness) * len(places)
        for place in places:
            weights[place] = share * mass / closed / len(places)
    for place, pair in enumerate(pairs):
        if not pair.is_closed:
            weights[place] = (1 - share if closed else 1.0) / (len(pairs) - closed)
    return weights


def false_premises(pairs: Sequence[QaRow], seed: int) -> tuple[FalsePremise, ...]:
    """Where and how large of every finding that a film's answers deny, and as many about organs a chest film lacks."""
    rng = random.Random(seed)
    made: list[FalsePremise] = []
    for pair in pairs:
        intent = interpret_question(pair.question)
        if pair.truth != "no" or intent.kind != "presence" or not intent.finding or intent.asks_absence or intent.side:
            continue
        name = noun(intent.finding)
        is_place = rng.random() < 0.6
        question = rng.choice(_WHERE if is_place else _SIZE).format(name)
        answer = f"there is no {name} to {'locate' if is_place else 'measure'} , so {CANNOT_TELL}"
        made.append(FalsePremise(pair, question, answer))
    films = {pair.film.id: pair for pair in pairs}
    made += [FalsePremise(pair, rng.choice(_ELSEWHERE), CANNOT_TELL) for pair in films.values()]
    return tuple(made)


@dataclass(frozen=True, eq=False)
class Written:
    """One example in tokens: the prompt the server would build, then the answer and its end."""

    ids: list[int]
    answer_tokens: int
    tokens: Tensor


def write(decoder: Decoder, turns: Sequence[Turn], seen: SeenFilm, answer: str) -> Written:
    said = [*decoder.tokenizer.encode_plain(answer), decoder.end_id]
    ids = decoder.prompt_ids(turns, seen.findings, len(seen.tokens), reserve=len(said))
    return Written([*ids, *said], len(said), seen.tokens)


def sentence(answer: str) -> str:
    """An answer as the decoder says it: a sentence with its full stop, whatever the data wrote."""
    return f"{answer.strip().rstrip('.').strip()} ."


def stack(written: Sequence[Written], pad_id: int) -> dict[str, Tensor]:
    """ids (B, T) padded behind, is_answer (B, T), tokens (B, N, D)."""
    longest = max(len(one.ids) for one in written)
    ids = torch.full((len(written), longest), pad_id)
    is_answer = torch.zeros(len(written), longest, dtype=torch.bool)
    for row, one in enumerate(written):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        is_answer[row, len(one.ids) - one.answer_tokens : len(one.ids)] = True
    return {"ids": ids, "is_answer": is_answer, "tokens": torch.stack([one.tokens for one in written])}
