"""The page: a client of the API and nothing else. It holds neither the model nor a key of anybody's but its own."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.words import ASK, FILM, LABELS, NO_FILM, NOT_ASSESSED, QUESTION, RESEARCH_USE, SCORE, TITLE
from foundation.errors import VesaliusError
from serving.client import Client


def bars(values: list[tuple[str, float]]) -> str:
    """Labelled bars as HTML; the numbers are text, so that a screen reader says them."""
    rows = [
        f"<div style='display:flex;gap:.6em;align-items:center'><span style='width:12em'>{html.escape(label)}</span>"
        f"<span style='flex:1;background:#8884;height:.7em'><span style='display:block;height:100%;background:#2a7f9e;"
        f"width:{100 * min(max(value, 0.0), 1.0):.1f}%'></span></span><span>{value:.2f}</span></div>"
        for label, value in values
    ]
    return "".join(rows)


class Panels:
    """What the page's buttons do, over one client."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def ask(self, film: str | None, question: str) -> Iterator[tuple[str, str]]:
        """(answer so far, findings as bars)"""
        if not film:
            yield NO_FILM, ""
            return
        said, shown = "", ""
        try:
            for piece in self.client.ask(question, film=Path(film).read_bytes()):
                said += piece.text
                evidence = piece.extras.evidence if piece.extras else None
                if evidence is not None and not evidence.assessed:
                    said = NOT_ASSESSED.format(kind=evidence.looks_like)
                elif evidence is not None:
                    shown = bars([(found.label, found.probability) for found in evidence.findings])
                yield said, shown
        except VesaliusError as error:
            yield error.message, ""

    def score(self, film: str | None, labels: str) -> str:
        """Labels, one a line, as bars."""
        wanted = [line.strip() for line in labels.splitlines() if line.strip()]
        if not film or not wanted:
            return NO_FILM
        try:
            item = self.client.zero_shot([Path(film).read_bytes()], wanted).model_dump(mode="json")["data"][0]
        except VesaliusError as error:
            return html.escape(error.message)
        if item.get("error"):
            return html.escape(str(item["error"]["message"]))
        if not item.get("assessed", True):
            return html.escape(NOT_ASSESSED.format(kind=item.get("looks_like") or ""))
        return bars([(one["label"], one["score"]) for one in item.get("labels") or item.get("scores") or []])


def build_page(client: Client) -> Any:
    """The Gradio page, not yet launched."""
    import gradio as gr

    panels = Panels(client)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(f"# {TITLE}\n{RESEARCH_USE}")
        film = gr.File(label=FILM, type="filepath")
        with gr.Tab(ASK):
            question = gr.Textbox(label=QUESTION, value="Is there a pleural effusion?")
            answer, findings = gr.Markdown(), gr.HTML()
            gr.Button(ASK, variant="primary").click(panels.ask, [film, question], [answer, findings], api_name=False)
        with gr.Tab(SCORE):
            labels = gr.Textbox(label=LABELS, lines=5, value="pleural effusion\ncardiomegaly\npneumothorax")
            scores = gr.HTML()
            gr.Button(SCORE, variant="primary").click(panels.score, [film, labels], scores, api_name=False)
    return page


def run_page(api_url: str, port: int, api_key: str | None = None) -> None:
    """Serve the page on loop-back until interrupted."""
    with Client(api_url, api_key=api_key) as client:
        build_page(client).launch(
            server_name="127.0.0.1", server_port=port, share=False, quiet=True, max_file_size="64mb", allowed_paths=[]
        )
