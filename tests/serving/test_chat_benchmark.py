"""The chat benchmark on a tiny decoder: it compares like with like, and it sees a lane that says something else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chat.bench import Bench, fault
from benchmarks.chat.load import arrivals, lane_first_tokens, static_first_tokens, under_load
from benchmarks.chat.saturation import interleaved, saturated
from benchmarks.chat.second import in_lane
from benchmarks.chat.table import section
from benchmarks.section import put_section
from foundation.tiny_decoder import make_tiny_decoder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Its clock ticks once whenever it is read."""
    ticks = itertools.count()
    return Bench(make_tiny_decoder(tmp_path_factory.mktemp("tiny"), 24), 6, lambda: float(next(ticks)))


def test_the_lane_says_what_transformers_says(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [bench.question(number) for number in range(4)]
    rates = saturated(bench, asked, is_exact=True)
    assert rates["equal_answers"] == 1.0
    assert rates["lane"] > 0
    monkeypatch.setattr(bench, "text", lambda ids: "something else")
    with pytest.raises(AssertionError, match="differ from transformers'"):
        saturated(bench, asked, is_exact=True)


def test_ways_take_turns_and_each_is_counted_alone() -> None:
    now, order = [0.0], list[str]()

    def way(name: str, pieces: int, seconds: float) -> Iterator[float]:
        for piece in range(1, pieces + 1):
            now[0] += seconds
            order.append(name)
            yield piece / pieces

    assert interleaved(lambda: now[0], {"a": way("a", 4, 1.0), "b": way("b", 2, 5.0)}) == {"a": 4.0, "b": 10.0}
    assert "".join(order) == "abaaba"


def test_transformers_weights_are_not_the_lanes(bench: Bench) -> None:
    """The lane's layout would be faster for transformers too, and then be no denominator."""
    bench.lane()
    theirs, ours = (one.model.model.layers[0].mlp.up_proj.weight for one in (bench._theirs, bench.decoder))
    assert theirs.is_contiguous()
    assert not ours.is_contiguous()


def test_every_question_has_a_first_token_after_its_arrival(bench: Bench) -> None:
    asked = [bench.question(number) for number in range(6)]
    times = arrivals(len(asked), 0.3, seed=1)
    assert times == sorted(times)
    first, ends = static_first_tokens(bench, asked, times)
    lane = lane_first_tokens(bench, asked, times)
    assert len(first) == len(ends) == len(lane) == len(asked)
    assert all(0 < one < end for one, end in zip(first, ends, strict=True))
    assert min(lane) > 0


def test_a_question_that_comes_during_a_static_batch_waits_for_its_end(bench: Bench) -> None:
    asked = [bench.question(number) for number in range(2)]
    (alone,), _ = static_first_tokens(bench, asked[1:], [0.0])
    (_, second), ends = static_first_tokens(bench, asked, [0.0, 0.5])
    assert second == pytest.approx(ends[0] - 0.5 + alone)


def test_a_turn_ends_when_there_is_news(bench: Bench) -> None:
    said = []
    for news in (False, True):
        lane = bench.lane()
        bench.ask(lane, 0, bench.question(3))
        lane.turn(0.0, fault)  # ends with the first token, which takes its writer out of the prompt
        before = lane._writing[0].length
        lane.turn(0.0, fault, lambda news=news: news)  # type: ignore[misc]
        said.append(lane._writing[0].length - before)
    assert said == [4, 1]


def test_the_page_is_made_of_what_was_measured(bench: Bench, tmp_path: Path) -> None:
    asked = [bench.question(number) for number in range(2)]
    found = {
        "rounds": 1,
        "questions": 2,
        "saturated": {**saturated(bench, asked, is_exact=True), "lane_over_static": 1.375},
        "load": under_load(bench, asked, {"static": 0.01, "lane": 0.02}, 1),
        "second_in_lane": in_lane(bench, 1),
    }
    text = section({"hardware": "a machine", "clock": "cpu", "measured": {"tiny, float32": found}})
    assert "| tokens/s over static batches of 16 | at least 1.5 | 1.38 |" in text
    assert "| second question about a film, times faster (engine) | at least 3 | - |" in text
    page = tmp_path / "benchmarks.md"
    put_section("other", "theirs", page)
    put_section("chat-lane", text, page)
    put_section("chat-lane", "## Anew", page)
    put_section("other", "theirs too", page)
    theirs = "<!-- begin other -->\ntheirs too\n<!-- end other -->"
    ours = "<!-- begin chat-lane -->\n## Anew\n<!-- end chat-lane -->"
    assert page.read_text() == f"# Benchmarks\n\n{theirs}\n\n{ours}\n"
