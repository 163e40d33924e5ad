"""Sampling and stop strings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import InvalidRequest
from foundation.sampling import Sampler, Sampling, StopMatcher

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0, 9.0])


def test_greedy_takes_the_best_that_may_be_said() -> None:
    assert Sampler(Sampling(), silent_ids=[4]).choose(LOGITS) == 1
    assert Sampler(Sampling(), silent_ids=[]).choose(LOGITS) == 4


def test_a_seed_repeats_and_seeds_differ() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=2.0, seed=seed), silent_ids=[4])
        return [sampler.choose(LOGITS) for _ in range(30)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert 4 not in draw(1)


def test_top_p_keeps_the_nucleus() -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.5, seed=0), silent_ids=[4])
    assert {sampler.choose(LOGITS) for _ in range(50)} == {1}
    wide = Sampler(Sampling(temperature=1.0, top_p=0.85, seed=0), silent_ids=[4])
    assert {wide.choose(LOGITS) for _ in range(200)} == {1, 2}


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0.0}, {"stop": ("",)}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Sampling(**options)  # type: ignore[arg-type]
    assert refusal.value.param in options


@given(st.text("ab.", max_size=20), st.lists(st.text("ab.", min_size=1, max_size=3), max_size=2), st.integers(1, 4))
def test_streamed_stop_strings_cut_like_a_search_of_the_whole(text: str, stops: list[str], size: int) -> None:
    matcher, shown, is_stopped = StopMatcher(stops), "", False
    for start in range(0, len(text), size):
        piece, is_stopped = matcher.push(text[start : start + size])
        shown += piece
        if is_stopped:
            break
    if not is_stopped:
        shown += matcher.flush()
    ends = [text.find(stop) for stop in stops if stop in text]
    if size == 1 and ends:  # one character at a time, the stop that is complete first wins
        finished = min((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
        first = min(text.find(stop) for stop in stops if stop in text and text.find(stop) + len(stop) == finished[0])
        assert shown == text[:first]
    elif len(stops) <= 1:
        assert shown == (text[: min(ends)] if ends else text)
