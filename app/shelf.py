"""The adapters of one task that the server offers, and what the page says of one before it is used."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import words
from app.events import QUIET
from foundation.errors import InvalidRequest, VesaliusError
from serving.client import Client
from serving.schemas.models import Model


class Shelf:
    """capability: the operation its adapters can be asked for. task: what `vesalius finetune` calls it."""

    def __init__(self, client: Client, capability: str, task: str) -> None:
        self._client = client
        self.capability, self.task = capability, task

    def offered(self) -> tuple[Model, ...]:
        """() where there are none or the server cannot be reached: a page that only loads needs no error."""
        try:
            listed = self._client.models()
        except VesaliusError:  # said where a question is asked
            return ()
        return tuple(one for one in listed if self.capability in one.vesalius.capabilities and one.vesalius.kind == "adapter")

    def named(self, name: str | None) -> Model:
        """Raises InvalidRequest where none is chosen, and what the client raises."""
        if not name:
            raise InvalidRequest(words.NO_CHOICE)
        return self._client.model(name)

    @property
    def nothing_here(self) -> str:
        return words.NO_ADAPTER.format(task=self.task)


@dataclass(frozen=True)
class Choice:
    """The controls of a choice among adapters. chosen: a state that holds its name, whose change says that it differs."""

    intro: Any
    dropdown: Any
    about: Any
    chosen: Any


def build_intro() -> Any:
    """The panel's first sentence: what it is for, or that no adapter is installed."""
    return gr.HTML(elem_classes="note")


def build_about() -> Any:
    """Where `about_html` is shown; to be rendered where the panel has room for it."""
    return gr.HTML(elem_classes="about", render=False)


def build_choice(intro: Any, about: Any, elem_id: str) -> Choice:
    return Choice(intro, gr.Dropdown([], label=words.ADAPTER, elem_id=elem_id), about, gr.State(None))


def wire_choice(shelf: Shelf, choice: Choice, page: Any, body: Any, sentence: str) -> None:
    """Fills the choice when the page loads. body: everything else of the panel, shown only where there is an adapter."""

    def offer() -> tuple[Any, ...]:
        models = shelf.offered()
        first = models[0] if models else None
        return (
            f"<p>{_sentence(sentence if first else shelf.nothing_here)}</p>",
            gr.update(choices=[one.id for one in models], value=first.id if first else None),
            about_html(first) if first else "",
            first.id if first else None,
            gr.update(visible=first is not None),
        )

    def pick(name: str | None) -> tuple[Any, ...]:
        try:
            return about_html(shelf.named(name)), name
        except VesaliusError as error:
            return f"<p>{html.escape(error.message)}</p>", name

    page.load(offer, None, [choice.intro, choice.dropdown, choice.about, choice.chosen, body], **QUIET)
    choice.dropdown.input(pick, choice.dropdown, [choice.about, choice.chosen], **QUIET)


def about_html(model: Model) -> str:
    """What its card says that it is for, and where its limits are."""
    told = model.vesalius
    parts = [f"<p>{_sentence(told.description)}</p>"] if told.description else []
    if told.limits:
        listed = "".join(f"<li>{_sentence(one)}</li>" for one in told.limits)
        parts.append(f"<h3>{html.escape(words.LIMITS)}</h3><ul>{listed}</ul>")
    if told.licence:
        parts.append(f'<p class="soft">{html.escape(words.LICENCE.format(licence=told.licence))}</p>')
    return "".join(parts)


def _sentence(text: str) -> str:
    """Names and commands stand between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
