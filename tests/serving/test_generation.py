"""The chat lane against the decoder alone: any lengths, arrivals, cancels and neighbours; what is kept, and what is told."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.bank import AdapterBank
from adapters.lora import LoraPair, LoraSpec, LoraWeights
from foundation.decoder import Decoder
from foundation.prompt import FindingState, Turn
from foundation.tiny_decoder import make_tiny_decoder
from serving.chat_work import Opening, Picture
from serving.evidence import Evidence, reliance
from serving.generation import ChatLane
from serving.messages import Film, Outcome, Request, Sampling

WIDTH, PATCHES = 24, 6
QUESTIONS = (
    "is there an effusion ?",
    "where ?",
    "describe the film , please : the heart , the lungs , and what else there is to be seen on both sides of it .",
    "no",
)
KEEP = 1 << 24


@dataclass(frozen=True)
class Question:
    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...]
    sampling: Sampling

    def opening(self) -> Opening:
        if not self.pictures:
            return Opening(self.turns)
        return Opening(self.turns, self.pictures[0], Evidence(True), lambda stores: self.pictures[1:])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return make_tiny_decoder(tmp_path_factory.mktemp("tiny"), WIDTH)


def picture(seed: int) -> Picture:
    draw = torch.Generator().manual_seed(seed)
    state = FindingState("effusion", (seed % 97) / 97, seed % 2 == 0)
    return Picture(torch.randn(PATCHES, WIDTH, generator=draw), (state,))


def question(number: int, **sampling: Any) -> Question:
    draw = random.Random(number)
    turns = [Turn("user", draw.choice(QUESTIONS))]
    for _ in range(draw.choice((0, 0, 1, 2))):
        turns += [Turn("assistant", "yes ."), Turn("user", draw.choice(QUESTIONS))]
    pictures = tuple(picture(number % 5 + 10 * view) for view in range(3)) if draw.random() < 0.8 else ()
    return Question(tuple(turns), pictures, Sampling(**{"max_tokens": draw.randint(1, 14), **sampling}))


def request(number: int, asked: Question, *, tenant: str = "", stores: bool = True) -> Request:
    film = Film(torch.zeros(1).numpy(), digest=f"film{number % 5}") if asked.pictures else None  # type: ignore[arg-type]
    return Request(number, "chat", film=film, sampling=asked.sampling, tenant=tenant, stores=stores)


def fault(number: int, error: Exception, trace: str) -> Outcome:
    return Outcome(number, error_code="internal_error", error_message=type(error).__name__)


def ask(lane: ChatLane, number: int, asked: Question, **more: Any) -> None:
    lane.start(request(number, asked, **more), asked.opening(), dict)


def drain(lane: ChatLane) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for _ in range(10_000):
        if not len(lane):
            return outcomes
        outcomes += lane.turn(0.0, fault)
    raise AssertionError("the lane does not come to an end")


def text_of(outcomes: list[Outcome], number: int) -> str:
    return "".join(one.value.get("delta", "") for one in outcomes if one.request_id == number and one.value)


def last_of(outcomes: list[Outcome], number: int) -> dict[str, Any]:
    (found,) = (one.value for one in outcomes if one.request_id == number and one.is_final)
    assert found is not None
    return dict(found)


def alone(decoder: Decoder, asked: Question) -> Any:
    """The slow truth: transformers' own model and cache, one chat by itself."""
    if not asked.pictures:
        return decoder.generate(asked.turns, None, None, asked.sampling)
    return decoder.generate(asked.turns, asked.pictures[0].findings, asked.pictures[0].tokens, asked.sampling)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("chats", "budget"), [(4, 17), (16, 256)])
def test_mixed_chats_equal_the_decoder_alone(decoder: Decoder, seed: int, chats: int, budget: int) -> None:
    """Random questions arrive in random turns, are greedy or sampled, and some of their askers leave."""
    draw = random.Random(seed)
    lane = ChatLane(decoder, 3, chats=chats, prefill_tokens=budget, cached_bytes=draw.choice((0, KEEP)))
    kinds: tuple[dict[str, Any], ...] = ({}, {}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_p": 0.8, "seed": 4})
    asked = {number: question(draw.randrange(1000), **draw.choice(kinds)) for number in range(14)}
    waiting, gone = list(asked), set[int]()
    outcomes: list[Outcome] = []
    while waiting or len(lane):
        for _ in range(draw.randint(0, 5)):
            if waiting:
                number = waiting.pop()
                ask(lane, number, asked[number])
        outcomes += lane.turn(0.0, fault)
        if draw.random() < 0.2:
            leaver = draw.choice(list(asked))
            if lane.cancel(leaver):
                gone.add(leaver)
    assert len(gone) < len(asked)
    for number in asked.keys() - gone:
        expected = alone(decoder, asked[number])
        last = last_of(outcomes, number)
        assert text_of(outcomes, number) == expected.text
        assert last["finish_reason"] == expected.finish_reason
        assert last["usage"] == {
            "prompt_tokens": expected.prompt_tokens,
            "completion_tokens": expected.completion_tokens,
        }
    assert lane._staging == list(range(chats, chats + 8))  # every row was given back
    assert not lane._writing
    assert not lane._feeds


def test_the_lane_batches(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the equality test: chats that were run one by one would pass it too."""
    lane = ChatLane(decoder, 4)
    widths: list[int] = []
    run = lane._model.run
    monkeypatch.setattr(lane._model, "run", lambda spans, x: widths.append(len(spans)) or run(spans, x))
    for number in range(6):
        ask(lane, number, question(3, max_tokens=12))
    drain(lane)
    assert max(widths) >= 6


def test_reliance_equals_scoring_each_picture_by_itself(decoder: Decoder) -> None:
    lane = ChatLane(decoder, 4, prefill_tokens=50, cached_bytes=KEEP)
    asked = [one for one in map(question, range(20)) if one.pictures][:4]
    for number, one in enumerate(asked):
        ask(lane, number, one)
    outcomes = drain(lane)
    for number, one in enumerate(asked):
        answer = alone(decoder, one).token_ids
        scores = []
        for view in one.pictures:
            ids = decoder.prompt_ids(one.turns, view.findings, PATCHES)
            scores.append(float(decoder.score(ids, answer, view.tokens[None])[0]))
        assert last_of(outcomes, number)["evidence"]["reliance"] == pytest.approx(reliance(scores[0], scores[1:]), abs=1e-5)


def test_blank_and_shuffled_film_are_scored_in_one_forward(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = ChatLane(decoder, 1)
    runs: list[list[int]] = []
    run = lane._model.run
    monkeypatch.setattr(lane._model, "run", lambda spans, x: runs.append([one.length for one in spans]) or run(spans, x))
    asked = next(one for one in map(lambda seed: question(seed, max_tokens=3), range(20)) if one.pictures)
    ask(lane, 1, asked)
    drain(lane)
    assert [len(lengths) for lengths in runs] == [1, 1, 1, 2]
    assert runs[0][0] > 1  # the prompt
    assert min(runs[-1]) > runs[0][0]  # prompt and answer, twice


def test_the_next_question_reads_only_what_is_new(decoder: Decoder) -> None:
    views = (picture(1),)
    first = Question((Turn("user", "is there an effusion ?"),), views, Sampling(max_tokens=6))
    lane = ChatLane(decoder, 4, cached_bytes=KEEP)
    ask(lane, 0, first)
    answer = text_of(drain(lane), 0)
    second = Question((Turn("user", "where ?"),), views, Sampling(max_tokens=6))
    later = Question((*first.turns, Turn("assistant", answer), Turn("user", "where ?")), views, Sampling(max_tokens=6))
    first_ids = decoder.prompt_ids(first.turns, views[0].findings, PATCHES)
    assert lane.read_tokens == len(first_ids)
    user = first_ids.index(decoder.tokenizer.special_ids["<user>"])
    for asked, kept in ((second, user + 1), (later, len(first_ids))):
        before = lane.read_tokens
        ask(lane, 0, asked)
        assert text_of(drain(lane), 0) == alone(decoder, asked).text
        ids = decoder.prompt_ids(asked.turns, views[0].findings, PATCHES)
        assert 0 < lane.read_tokens - before <= len(ids) - kept


@pytest.mark.parametrize(
    ("other", "are_kept"),
    [({"tenant": "b"}, False), ({"tenant": "a"}, True)],
)
def test_nothing_kept_for_one_tenant_serves_another(decoder: Decoder, other: dict[str, Any], are_kept: bool) -> None:
    asked = Question((Turn("user", "where ?"),), (picture(1),), Sampling(max_tokens=2))
    lane = ChatLane(decoder, 4, cached_bytes=KEEP)
    ask(lane, 0, asked, tenant="a")
    drain(lane)
    whole = lane.read_tokens
    ask(lane, 0, asked, **other)
    drain(lane)
    assert (lane.read_tokens < 2 * whole) == are_kept


def _never(lane: ChatLane, asked: Question) -> None:
    ask(lane, 0, asked, tenant="a", stores=False)
    drain(lane)


def _forgotten(lane: ChatLane, asked: Question) -> None:
    ask(lane, 0, asked, tenant="a")
    drain(lane)
    assert len(lane._prefixes)
    lane.forget("a", "film0")


def _forgotten_meanwhile(lane: ChatLane, asked: Question) -> None:
    ask(lane, 0, asked, tenant="a")
    lane.turn(0.0, fault)
    lane.forget("a", "film0")
    drain(lane)


@pytest.mark.parametrize("way", [_never, _forgotten, _forgotten_meanwhile])
def test_no_store_and_forget_leave_nothing(decoder: Decoder, way: Callable[[ChatLane, Question], None]) -> None:
    asked = Question((Turn("user", "where ?"),), tuple(picture(seed) for seed in (1, 2, 3)), Sampling(max_tokens=9))
    lane = ChatLane(decoder, 2, cached_bytes=KEEP)
    way(lane, asked)
    assert len(lane._prefixes) == 0
    assert lane._prefixes.held_bytes == 0


def test_what_is_kept_stays_within_its_bytes(decoder: Decoder) -> None:
    lane = ChatLane(decoder, 4, cached_bytes=60_000)
    for seed in range(12):
        ask(lane, seed, Question((Turn("user", "where ?"),), (picture(seed),), Sampling(max_tokens=2)))
        drain(lane)
        held = sum(one.size_bytes for one in lane._prefixes._held.values())
        assert held == lane._prefixes.held_bytes <= 60_000
    assert 0 < len(lane._prefixes) < 12


def test_the_same_seed_says_the_same_whatever_the_neighbours(decoder: Decoder) -> None:
    asked = question(7, temperature=1.3, top_p=0.9, seed=11, max_tokens=12)
    said = set()
    for neighbours in (0, 3, 9):
        lane = ChatLane(decoder, 2, cached_bytes=KEEP)
        for number in range(neighbours):
            ask(lane, number, question(number, temperature=1.0))
        ask(lane, 99, asked)
        said.add(text_of(drain(lane), 99))
    assert len(said) == 1
    lane = ChatLane(decoder, 2)
    ask(lane, 99, question(7, temperature=1.3, top_p=0.9, seed=12, max_tokens=12))
    assert text_of(drain(lane), 99) not in said


def test_log_probabilities_are_those_of_the_model(decoder: Decoder) -> None:
    asked = Question((Turn("user", "where ?"),), (picture(1),), Sampling(max_tokens=5, logprobs=True, top_logprobs=3))
    lane = ChatLane(decoder, 2)
    ask(lane, 0, asked)
    reports = [report for one in drain(lane) if one.value for report in one.value.get("logprobs", [])]
    ids = decoder.prompt_ids(asked.turns, asked.pictures[0].findings, PATCHES)
    tokens = alone(decoder, asked).token_ids
    for report, token in zip(reports, [one for one in tokens if one != decoder.end_id], strict=True):
        with torch.no_grad():
            logits = decoder.model(inputs_embeds=decoder.embed(ids, asked.pictures[0].tokens)).logits[0, -1]
        logits[list(decoder.tokenizer.silent_ids)] = -math.inf
        best = logits.log_softmax(0).topk(3)
        assert report["token"] == decoder.tokenizer.tokens([token])[0]
        assert report["logprob"] == pytest.approx(float(logits.log_softmax(0)[token]), abs=1e-4)
        assert [word for word, _ in report["top"]] == decoder.tokenizer.tokens(best.indices.tolist())
        assert [value for _, value in report["top"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        ids = [*ids, token]


def test_a_chat_that_fails_ends_alone(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row's embeddings make the forward raise, as a broken kernel would, and another's logits are not finite."""
    asked = {number: question(number, max_tokens=8) for number in range(5)}
    bad = Question((Turn("user", "where ?"),), (Picture(torch.full((PATCHES, WIDTH), 7.0), ()),), Sampling(max_tokens=8))
    nan = Question((Turn("user", "where ?"),), (Picture(torch.full((PATCHES, WIDTH), math.nan), ()),), Sampling(max_tokens=8))
    lane = ChatLane(decoder, 2)
    run = lane._model.run
    mark = decoder.projector(torch.full((1, WIDTH), 7.0))[0]

    def breaks(spans: Any, embedded: torch.Tensor) -> torch.Tensor:
        if bool(((embedded - mark).abs().amax(1) < 1e-5).any()):
            raise RuntimeError("a secret in a library's text")
        return run(spans, embedded)

    monkeypatch.setattr(lane._model, "run", breaks)
    for number, one in asked.items():
        ask(lane, number, one)
    ask(lane, 98, nan)
    ask(lane, 99, bad)
    outcomes = drain(lane)
    assert {one.request_id: one.error_message for one in outcomes if one.is_error} == {
        98: "ArithmeticError",
        99: "RuntimeError",
    }
    for number, one in asked.items():
        assert text_of(outcomes, number) == alone(decoder, one).text
    for number, one in asked.items():  # in the rows that the broken ones had
        ask(lane, number, one)
    outcomes = drain(lane)
    assert [text_of(outcomes, number) for number in asked] == [alone(decoder, one).text for one in asked.values()]


def test_who_takes_the_row_of_a_chat_that_broke_while_it_wrote_goes_on_from_all_its_tokens(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of those that write moves into the free row, with the token of this very step."""
    asked = {number: question(number + 3, max_tokens=12, logprobs=True) for number in range(3)}

    def reports(outcomes: list[Outcome], number: int) -> list[float]:
        values = [one.value for one in outcomes if one.request_id == number and one.value]
        return [report["logprob"] for value in values for report in value.get("logprobs", [])]

    expected: dict[int, list[float]] = {}
    for number, one in asked.items():
        lane = ChatLane(decoder, 1)
        ask(lane, number, one)
        expected[number] = reports(drain(lane), number)
    lane = ChatLane(decoder, 1)
    run, broke = lane._model.run, list[int]()

    def breaks(spans: Any, embedded: torch.Tensor) -> torch.Tensor:
        if len(lane._writing) == 3 and any(span.row == 0 for span in spans) and len(broke) < 2:
            broke.append(len(spans))  # the whole batch, then row 0 by itself
            raise RuntimeError("broken")
        return run(spans, embedded)

    monkeypatch.setattr(lane._model, "run", breaks)
    for number, one in asked.items():
        ask(lane, number, one)
    outcomes = drain(lane)
    assert broke == [3, 1]
    (lost,) = [one.request_id for one in outcomes if one.is_error]
    for number in asked.keys() - {lost}:
        assert len(expected[number]) > 1
        assert reports(outcomes, number) == pytest.approx(expected[number], abs=1e-4)


def test_a_question_that_does_not_fit_is_told_and_its_neighbour_is_answered(decoder: Decoder) -> None:
    lane = ChatLane(decoder, 2)
    ask(lane, 0, Question((Turn("user", "where " * 2000),), (), Sampling()))
    ask(lane, 1, question(1))
    outcomes = drain(lane)
    assert [(one.request_id, one.error_code) for one in outcomes if one.is_error] == [(0, "invalid_request")]
    assert text_of(outcomes, 1) == alone(decoder, question(1)).text


@dataclass(frozen=True)
class Tower:
    image_tower: torch.nn.Module


@dataclass(frozen=True)
class OnDecoder:
    slot: int
    digest: str


def lora(decoder: Decoder, seed: int) -> LoraWeights:
    """Random LoRA on every map of the decoder's blocks."""
    draw = torch.Generator().manual_seed(seed)
    maps = {f"model.{n}": m for n, m in decoder.model.model.named_modules() if isinstance(m, torch.nn.Linear)}
    pairs = {
        name: LoraPair(
            0.3 * torch.randn(4, m.in_features, generator=draw), 0.3 * torch.randn(m.out_features, 4, generator=draw)
        )
        for name, m in maps.items()
    }
    return LoraWeights(LoraSpec(tuple(maps), rank=4, alpha=8), pairs)


def test_a_batch_of_several_adapters_equals_each_alone(tmp_path: Path) -> None:
    """Two adapters and the decoder itself, in one lane; what is kept of a film is kept for each by itself."""
    decoder = make_tiny_decoder(tmp_path, WIDTH)
    bank = AdapterBank(Tower(decoder.model))
    through = [OnDecoder(bank.install(lora(decoder, seed)), f"digest{seed}") for seed in (1, 2)]
    lane = ChatLane(decoder, 4, bank, prefill_tokens=40, cached_bytes=KEEP)
    asked = Question((Turn("user", "where ?"),), tuple(picture(seed) for seed in (1, 2, 3)), Sampling(max_tokens=9))
    chats = {number: adapter for number, adapter in enumerate([None, *through, None, *through])}
    outcomes = []
    for number, adapter in chats.items():
        lane.start(request(number, asked), replace(asked.opening(), adapter=adapter), dict)
        if number == 2:
            outcomes += lane.turn(0.0, fault)
    assert lane.adapters == {"digest1", "digest2"}
    outcomes += drain(lane)
    said = {}
    for number, adapter in chats.items():
        with bank.rows([adapter.slot if adapter else 0]):
            expected = alone(decoder, asked)
            scores = []
            for view in asked.pictures:
                ids = decoder.prompt_ids(asked.turns, view.findings, PATCHES)
                scores.append(float(decoder.score(ids, expected.token_ids, view.tokens[None])[0]))
        said[adapter] = text_of(outcomes, number)
        assert said[adapter] == expected.text
        assert last_of(outcomes, number)["evidence"]["reliance"] == pytest.approx(reliance(scores[0], scores[1:]), abs=1e-5)
    assert len(set(said.values())) == 3  # the adapters matter


def test_first_words_are_told_before_anything_else_is_done(decoder: Decoder) -> None:
    """Neither the next words nor the films it is scored against are waited for."""
    lane = ChatLane(decoder, 64)
    asked = Question((Turn("user", "where ?"),), (picture(1), picture(2), picture(3)), Sampling(max_tokens=9))
    looked = []

    def without(stores: bool) -> tuple[Picture, ...]:
        looked.append(stores)
        return asked.pictures[1:]

    lane.start(request(1, asked), replace(asked.opening(), without=without), dict)
    first = lane.turn(0.0, fault)
    assert text_of(first, 1)
    assert len(text_of(first, 1).split()) == 1
    assert not looked
    assert not any(outcome.is_final for outcome in first)
    assert text_of(first + drain(lane), 1) == alone(decoder, asked).text
    assert looked
