"""The load generator over a real socket: what it counts is what the server did."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.load.clients import Tally, closed_loop, in_turn, open_loop
from benchmarks.load.films import FORMS, Ask, Form, ask, broken, films
from benchmarks.load.ideal import ideal
from serving.fake import FakeGateway


@pytest.fixture(scope="module")
def film() -> bytes:
    return films(64, 1)[0]


@pytest.mark.parametrize("form", FORMS)
def test_every_answer_of_a_closed_loop_is_counted(address: str, gateway: FakeGateway, film: bytes, form: Form) -> None:
    good = ask(film, form, address.partition("//")[2])
    tally = asyncio.run(closed_loop(address, in_turn([good]), 3, 0.5))
    assert len(tally.latencies_s) >= 3
    assert tally.lost == tally.busy == tally.left == 0
    assert 0.0 < tally.quantile(0.5) <= tally.quantile(0.99) < 10.0


def test_an_open_loop_asks_at_its_own_rate(address: str, gateway: FakeGateway, film: bytes) -> None:
    good = ask(film, "base64", address.partition("//")[2])
    tally = asyncio.run(open_loop(address, in_turn([good]), 40.0, 1.0))
    assert 15 <= len(tally.latencies_s) <= 80
    assert tally.lost == 0


def test_who_leaves_is_no_loss(address: str, gateway: FakeGateway, film: bytes) -> None:
    good = ask(film, "base64", address.partition("//")[2])
    tally = asyncio.run(closed_loop(address, in_turn([good]), 2, 0.5, leaving=0.5, leave_after_s=0.002))
    assert tally.left > 0
    assert tally.lost == 0


def test_who_is_answered_before_leaving_has_not_left_in_vain(address: str, gateway: FakeGateway, film: bytes) -> None:
    good = ask(film, "base64", address.partition("//")[2])
    tally = asyncio.run(closed_loop(address, in_turn([good]), 1, 0.5, leaving=1.0, leave_after_s=60.0))
    assert tally.in_time == tally.left > 0
    assert tally.latencies_s == []


def test_the_ideal_server_wastes_nothing_and_a_faster_one_shows_less_of_it() -> None:
    """0.25 s at 16 clients: all leave in time where answers take longer, half are answered first where they are quick."""
    asked = {"clients": 16, "leaving": 0.5, "leave_after_s": 0.25}
    assert ideal(100.0, **(asked | {"leaving": 0.0})).stayed == pytest.approx(1.0, abs=0.01)
    found = [ideal(rate, **asked) for rate in (20.0, 57.0, 113.0, 400.0)]
    assert [one.stayed for one in found] == sorted((one.stayed for one in found), reverse=True)
    assert found[0].stayed == pytest.approx(1.0, abs=0.01)
    assert found[1].stayed == pytest.approx(0.84, abs=0.02)
    assert found[2].stayed == pytest.approx(0.65, abs=0.02)
    assert all(0.9 < one.stayed + one.in_time <= 1.01 for one in found)


def test_a_broken_film_that_is_refused_is_no_loss_and_one_that_is_answered_is() -> None:
    tally, bad, good = Tally(), Ask(b"", is_broken=True), Ask(b"")
    for asked, status in ((bad, 400), (bad, 200), (good, 200), (good, 500), (good, 429)):
        tally.note(asked, status, 0.1)
    assert (tally.refused, tally.lost, tally.busy, len(tally.latencies_s)) == (1, 2, 1, 1)


def test_a_broken_film_cannot_be_read(film: bytes) -> None:
    from foundation.errors import FilmUnreadable
    from foundation.readers import read_film

    assert read_film(film).pixels.shape == (1, 64, 64)
    with pytest.raises(FilmUnreadable):
        read_film(broken(film))
