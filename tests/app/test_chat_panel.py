"""The chat panel over a live API: it streams, keeps what was said, and loses nothing when something fails."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest

from app import words
from app.evidence import evidence_card
from app.film import OpenFilm
from app.panels.chat import Asking, ChatPanel, ChatView, Talk
from app.panels.film import FilmDesk
from serving.client import Client
from serving.fake import FINDINGS
from serving.schemas.chat import ChatExtras, Evidence, Finding, HeatMap
from serving.schemas.common import Provenance, Timings
from tests.app.conftest import Served
from tests.serving.live_api import color_picture, nifti_volume, png_film, wait_until

QUESTION = "Is there an effusion?"


@pytest.fixture
def film() -> OpenFilm:
    return OpenFilm.read(png_film(3), "film.png")


def extras(**evidence: object) -> ChatExtras:
    return ChatExtras(evidence=Evidence(**evidence), provenance=Provenance(model="m"), timings=Timings())  # type: ignore[arg-type]


def last(views: list[ChatView]) -> ChatView:
    assert all(view.writing is not None for view in views[:-1])
    assert views[-1].writing is None
    return views[-1]


def test_the_answer_grows_and_then_stands(served: Served, film: OpenFilm) -> None:
    views = list(ChatPanel(served.client).ask(film, Talk(), QUESTION))
    written = [view.writing or "" for view in views[:-1]]
    assert len(written) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(written))
    end = last(views)
    assert [turn.role for turn in end.talk.turns] == ["user", "assistant"]
    assert end.talk.turns[1].text == written[-1]
    assert (end.question, end.notice) == ("", "")
    assert end.reading is not None
    assert end.reading.view == film.view
    assert {label for _, label in end.reading.map_choices()} == set(FINDINGS)


def test_the_next_question_carries_the_conversation(served: Served, film: OpenFilm) -> None:
    panel = ChatPanel(served.client)
    talk = last(list(panel.ask(film, Talk(), QUESTION))).talk
    end = last(list(panel.ask(film, talk, "Where is it?")))
    assert served.gateway.requests[-1].turns[:2] == talk.turns
    assert len(end.talk.turns) == 4


def test_another_film_begins_another_conversation(served: Served, film: OpenFilm) -> None:
    panel = ChatPanel(served.client)
    talk = last(list(panel.ask(film, Talk(), QUESTION))).talk
    list(panel.ask(OpenFilm.read(png_film(4), "other.png"), talk, QUESTION))
    assert len(served.gateway.requests[-1].turns) == 1


def test_the_chosen_slice_is_what_is_asked_about(served: Served) -> None:
    volume = OpenFilm.read(nifti_volume(9), "volume.nii").at(slice_index=7, window=None)
    list(ChatPanel(served.client).ask(volume, Talk(), QUESTION))
    asked = served.gateway.requests[-1].film
    assert asked is not None
    assert asked.slice_index == 7
    assert (asked.pixels == volume.pixels(FilmDesk(served.client).contract)).all()


@pytest.mark.parametrize("break_after", [None, 2])
def test_an_error_keeps_question_and_conversation(served: Served, film: OpenFilm, break_after: int | None) -> None:
    panel = ChatPanel(served.client)
    talk = last(list(panel.ask(film, Talk(), QUESTION))).talk
    served.gateway.error = ("overloaded", "The server is busy. Try again in 3 seconds.")
    served.gateway.break_after = break_after
    end = last(list(panel.ask(film, talk, "Where is it?")))
    assert end.notice == "The server is busy. Try again in 3 seconds."
    assert end.question == "Where is it?"
    assert end.talk == talk
    assert end.messages()[-1]["content"] == talk.turns[-1].text
    assert end.reading is None


def test_a_server_that_is_gone_is_a_sentence(film: OpenFilm) -> None:
    with Client("http://127.0.0.1:9") as client:
        end = last(list(ChatPanel(client).ask(film, Talk(), QUESTION)))
    assert "No server answers" in end.notice
    assert end.question == QUESTION


def test_without_a_film_or_a_question_the_server_is_not_asked(served: Served, film: OpenFilm) -> None:
    panel = ChatPanel(served.client)
    assert last(list(panel.ask(None, Talk(), QUESTION))).notice == words.NO_FILM
    assert last(list(panel.ask(None, Talk(), QUESTION))).question == QUESTION
    assert last(list(panel.ask(film, Talk(), "  "))).notice == words.NO_QUESTION
    assert served.gateway.requests == []


def test_leaving_an_answer_withdraws_the_question(served: Served, film: OpenFilm) -> None:
    served.gateway.delay_s = 0.05
    views = ChatPanel(served.client).ask(film, Talk(), QUESTION)
    next(views)
    next(views)
    views.close()  # type: ignore[attr-defined]
    wait_until(lambda: len(served.gateway.cancelled) == 1)


@pytest.mark.parametrize(("ending", "turns", "question"), [("stop", 2, "Where is it?"), ("new", 0, "")])
def test_an_answer_is_ended_from_outside(
    served: Served, film: OpenFilm, ending: Literal["stop", "new"], turns: int, question: str
) -> None:
    panel, asking = ChatPanel(served.client), Asking()
    talk = last(list(panel.ask(film, Talk(), QUESTION, asking))).talk
    served.gateway.delay_s = 0.05
    views = panel.ask(film, talk, "Where is it?", asking)
    next(views)
    asking.ending = ending
    end = last([*views])
    assert (len(end.talk.turns), end.question) == (turns, question)
    wait_until(lambda: len(served.gateway.cancelled) == 1)


def test_a_refusal_stands_in_place_of_numbers(served: Served) -> None:
    photo = OpenFilm.read(color_picture(), "photo.png")
    end = last(list(ChatPanel(served.client).ask(photo, Talk(), QUESTION)))
    assert end.reading is not None
    card = evidence_card(end.reading.extras)
    assert "Not assessed: this looks like a photograph." in card
    assert "bars" not in card
    assert end.reading.map_choices() == []


def test_a_message_is_escaped(served: Served, film: OpenFilm) -> None:
    views = list(ChatPanel(served.client).ask(film, Talk(), "nodule <5 mm & <b>calcified</b>?"))
    for view in views:
        assert view.messages()[0]["content"] == "nodule &lt;5 mm &amp; &lt;b&gt;calcified&lt;/b&gt;?"
    assert served.gateway.requests[-1].turns[0].text == "nodule <5 mm & <b>calcified</b>?"


def test_reliance_is_said_in_words() -> None:
    cards = [evidence_card(extras(reliance=value)) for value in (0.03, 0.3, 0.9, None)]
    for card, sentence in zip(cards, (words.INDEPENDENT, words.WEAK, words.DEPENDENT), strict=False):
        assert sentence in card
    assert "reliance" not in cards[3]


def test_evidence_is_escaped() -> None:
    card = evidence_card(extras(findings=[Finding(label="<b>x</b>", probability=0.5)], assessed=True))
    refusal = evidence_card(extras(assessed=False, looks_like="<i>y</i>"))
    assert "<b>x" not in card
    assert "<i>y" not in refusal


def test_only_an_adapter_makes_a_number_calibrated() -> None:
    plain = extras(findings=[Finding(label="mass", probability=0.5, threshold=0.5)])
    adapted = plain.model_copy(update={"provenance": Provenance(model="m", adapter="a" * 64)})
    assert words.NOT_CALIBRATED in evidence_card(plain)
    assert words.CALIBRATED in evidence_card(adapted)


def test_a_map_is_shown_unasked_only_for_what_is_present(film: OpenFilm) -> None:
    from app.reading import Reading

    heat = HeatMap(label="mass", grid=[[0.0, 1.0]])
    for probability, shown in ((0.7, "mass"), (0.3, "")):
        found = [Finding(label="mass", probability=probability, threshold=0.5)]
        reading = Reading(film.view, extras(findings=found, heatmap=heat, maps=[heat]))
        assert reading.first_map() == shown
        assert reading.map_choices() == [(f"mass ({probability:.2f})", "mass")]


def test_a_map_lies_only_over_the_view_it_was_made_for(served: Served) -> None:
    desk, volume = FilmDesk(served.client), OpenFilm.read(nifti_volume(9), "volume.nii")
    reading = last(list(ChatPanel(served.client).ask(volume, Talk(), QUESTION))).reading
    assert desk.figure(volume, reading, FINDINGS[0]).count("<img") == 2
    assert desk.figure(volume, reading, "").count("<img") == 1
    assert desk.figure(volume.at(slice_index=1, window=None), reading, FINDINGS[0]).count("<img") == 1
