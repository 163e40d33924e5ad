"""Damaged films through the routes and real decode processes; `benchmarks/fuzz.py` is the long form of the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz
from benchmarks.mutants import mutant, seeds
from serving.decode_pool import DecodeConfig

SEEDS = seeds()
PATIENT = DecodeConfig(time_limit_s=60.0, wall_limit_s=250.0, start_limit_s=250.0)  # a loaded machine is slow, not hung


def test_damaged_films_are_answered_and_break_nothing() -> None:
    found = asyncio.run(fuzz(120, config=PATIENT, held=SEEDS))
    assert found.is_clean, found
    assert sum(found.statuses.values()) == 120
    assert found.statuses["200"], found  # sound films came through
    assert found.codes["film_unreadable"], found  # and broken ones


def test_what_breaks_a_decoder_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films that name what the test's decode process shall do; see bad_decoder.py."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    config = DecodeConfig(processes=1, time_limit_s=0.5, wall_limit_s=2.0, start_limit_s=250.0, module="bad_decoder")
    crashed = asyncio.run(fuzz(1, config=config, held={"crash": b"crash"}, change=_as_it_is))
    assert (crashed.crashes, crashed.is_clean) == (2, False)  # a film is blamed the second time
    hung = asyncio.run(fuzz(1, config=config, held={"hang": b"hang"}, change=_as_it_is))
    assert (hung.hangs, hung.is_clean) == (1, False)


def _as_it_is(held: Mapping[str, bytes], _: int) -> tuple[str, bytes]:
    return next(iter(held.items()))


def test_a_mutant_can_be_made_again_and_differs_from_the_next() -> None:
    assert mutant(SEEDS, 7) == mutant(SEEDS, 7)
    assert len({mutant(SEEDS, number) for number in range(50)}) == 50
    assert len(SEEDS) > 60
