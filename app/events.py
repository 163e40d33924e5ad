"""How every event of the page is wired, and how a panel says a sentence that must be read."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Private: no event of the page is an endpoint that can be called by name."""

WAITING: dict[str, Any] = {**QUIET, "show_progress": "minimal"}
"""For what may take a while and shows nothing of its own until it is done."""


def notice_box() -> Any:
    return gr.HTML(elem_classes="notice", visible=False)


def notice(sentence: str) -> Any:
    """An error, or what is missing; "" takes the box away."""
    return gr.update(value=f'<p role="alert">{html.escape(sentence)}</p>' if sentence else "", visible=bool(sentence))
