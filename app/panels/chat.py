"""The chat: questions about the film in several turns, answers as they are written, what each rests on beside it."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

from app import words
from app.events import QUIET, notice, notice_box
from app.evidence import empty_card, evidence_card
from app.film import OpenFilm
from app.panels.film import KEPT_S, FilmColumn, map_chooser
from app.reading import Reading
from foundation.errors import VesaliusError
from serving.client import Client
from serving.messages import ChatTurn

TURNS_SENT = 24  # of the conversation so far; older ones are shown but not sent
NOTHING_YET = empty_card(words.EVIDENCE, words.EVIDENCE_EMPTY)


@dataclass(frozen=True)
class Talk:
    """A conversation: what was said and holds, and the digest of the film it is about."""

    turns: tuple[ChatTurn, ...] = ()
    about: str = ""


@dataclass
class Asking:
    """How a session ends the answer being written from outside it: one writer alone changes what the chat shows."""

    ending: Literal["", "stop", "new"] = ""

    def begin(self) -> None:
        self.ending = ""


@dataclass(frozen=True)
class ChatView:
    """The chat at one moment. writing: the answer under way, None between answers; asked: its question.

    question: what is left in the box: nothing after an answer, the question itself after an error.
    reading: the newest evidence, None to keep what is shown.
    """

    talk: Talk
    question: str = ""
    asked: str = ""
    writing: str | None = None
    notice: str = ""
    reading: Reading | None = None

    def messages(self) -> list[dict[str, str]]:
        """As gr.Chatbot takes them; escaped, since it shows HTML even where Markdown is turned off."""
        shown = [(turn.role, turn.text) for turn in self.talk.turns]
        if self.writing is not None:
            shown += [("user", self.asked), ("assistant", self.writing or "…")]
        return [{"role": role, "content": html.escape(text, quote=False)} for role, text in shown]


class ChatPanel:
    """Asks the server. Holds no conversation: that is the session's."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def ask(self, film: OpenFilm | None, talk: Talk, question: str, asking: Asking | None = None) -> Iterator[ChatView]:
        """The chat, again and again as the answer grows. An error ends it with its sentence and the question kept.

        asking: looked at after every piece; "stop" ends the answer, "new" the conversation with it.
        """
        asking = asking or Asking()
        asking.begin()
        asked = question.strip()
        if film is None or not asked:
            yield ChatView(talk, question, notice=words.NO_QUESTION if film is not None else words.NO_FILM)
            return
        talk = talk if talk.about == film.digest else Talk(about=film.digest)
        said, extras = "", None
        yield ChatView(talk, asked=asked, writing="")
        try:
            for piece in self._client.ask(asked, film=film.picture(), history=talk.turns[-TURNS_SENT:], maps=True):
                if asking.ending:
                    yield ChatView(talk, question, notice=words.STOPPED) if asking.ending == "stop" else ChatView(Talk())
                    return
                said += piece.text
                extras = piece.extras or extras
                if piece.text:
                    yield ChatView(talk, asked=asked, writing=said)
        except VesaliusError as error:
            yield ChatView(talk, question, notice=error.message)
            return
        turns = (*talk.turns, ChatTurn("user", asked), ChatTurn("assistant", said))
        yield ChatView(Talk(turns, film.digest), reading=None if extras is None else Reading(film.view, extras))


@dataclass(frozen=True)
class _Parts:
    talk: Any
    chatbot: Any
    question: Any
    notice: Any
    evidence: Any
    asking: Any


def build_chat(panel: ChatPanel, film: FilmColumn) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=260):
            talk, chatbot, said = gr.State(Talk(), time_to_live=KEPT_S), _chatbot(), notice_box()
            with gr.Row(elem_classes="suggest"):
                suggested = [gr.Button(text, size="sm", min_width=90) for text in words.SUGGESTED]
            question = gr.Textbox(
                label=words.QUESTION,
                placeholder=words.QUESTION_HINT,
                submit_btn=words.ASK,
                max_lines=4,
                max_length=2000,
                elem_id="question",
            )
            with gr.Row(elem_classes="suggest"):
                stop = gr.Button(words.STOP, size="sm", min_width=90, elem_id="stop")
                renew = gr.Button(words.NEW_TALK, size="sm", min_width=90, elem_id="renew")
        with gr.Column(scale=5, min_width=260):
            evidence = gr.HTML(NOTHING_YET, elem_id="evidence")
    asking = gr.State(Asking(), time_to_live=KEPT_S)
    parts = _Parts(talk, chatbot, question, said, evidence, asking)
    _wire_questions(panel, film, parts, suggested)
    for change in film.changes:
        change.then(_follow, [film.film, talk, film.reading, asking], [talk, chatbot, evidence], **QUIET)
    stop.click(_stop, asking, None, **QUIET)
    for emptied in (renew.click, chatbot.clear):
        emptied(_renew, asking, [talk, chatbot, said], **QUIET)


def _chatbot() -> Any:
    return gr.Chatbot(
        label=words.CHAT_LABEL,
        show_label=False,
        height=344,
        placeholder=words.CHAT_EMPTY,
        buttons=["copy"],  # naming the buttons leaves out the one that would send the conversation away
        render_markdown=False,
        feedback_options=None,
        elem_id="chat",
    )


def _wire_questions(panel: ChatPanel, film: FilmColumn, parts: _Parts, suggested: list[Any]) -> None:
    """Each way to ask."""
    outputs = [parts.talk, parts.chatbot, parts.question, parts.notice, parts.evidence, film.reading, film.chooser]

    def ask(shown: OpenFilm | None, talk: Talk, question: str, asking: Asking) -> Iterator[tuple[Any, ...]]:
        for view in panel.ask(shown, talk, question, asking):
            yield _updates(view)

    def suggest(shown: OpenFilm | None, talk: Talk, question: str, asking: Asking) -> Iterator[tuple[Any, ...]]:
        for view in panel.ask(shown, talk, question, asking):
            yield _updates(view, is_typed=False)

    def given(question: Any) -> list[Any]:
        return [film.film, parts.talk, question, parts.asking]

    shown_anew = film.chosen.then(
        _follow, [film.film, parts.talk, film.reading, parts.asking], [parts.talk, parts.chatbot, parts.evidence], **QUIET
    )
    answered = [
        parts.question.submit(ask, given(parts.question), outputs, trigger_mode="once", **QUIET),
        *(button.click(suggest, given(button), outputs, trigger_mode="once", **QUIET) for button in suggested),
        shown_anew.then(suggest, given(suggested[0]), outputs, **QUIET),
    ]
    for event in answered:
        event.then(film.draw, [film.film, film.reading, film.chooser], film.figure, **QUIET)


def _updates(view: ChatView, *, is_typed: bool = True) -> tuple[Any, ...]:
    """is_typed: whether the question came from the box, which is then emptied; else what is written there stays."""
    reading = view.reading
    return (
        view.talk,
        view.messages(),
        view.question if is_typed and view.writing is None else gr.skip(),
        notice(view.notice),
        gr.skip() if reading is None else evidence_card(reading.extras),
        gr.skip() if reading is None else reading,
        gr.skip() if reading is None else map_chooser(reading),
    )


def _follow(film: OpenFilm | None, talk: Talk, reading: Reading | None, asking: Asking) -> tuple[Any, ...]:
    """Another film begins another conversation; another view of it takes away evidence that is not about it."""
    if film is not None and talk.about not in ("", film.digest):
        asking.ending = "new"
        return Talk(), [], NOTHING_YET
    return gr.skip(), gr.skip(), gr.skip() if reading is not None else NOTHING_YET


def _stop(asking: Asking) -> None:
    asking.ending = "stop"


def _renew(asking: Asking) -> tuple[Any, ...]:
    asking.ending = "new"
    return Talk(), [], notice("")
