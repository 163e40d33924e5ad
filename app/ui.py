"""The page: assembles the panels. A client of the API; holds neither model nor patient beyond a session.

    film column (panels/film.py)  |  Chat (chat.py)   Findings (findings.py)   Regions (regions.py)   Anomaly (anomaly.py)
                                  |  Course (course.py)   Your own labels (zero_shot.py)

The film is opened once for all tabs. What a person did (film, question, conversation) lives in the session's states, so
that an error loses nothing. No event is an API endpoint, and no file is served but the thumbnails of the examples.
"""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from app import words
from app.events import QUIET
from app.guard import Guard
from app.panels.anomaly import AnomalyPanel, build_anomaly
from app.panels.chat import ChatPanel, build_chat
from app.panels.course import CoursePanel, build_course
from app.panels.film import FilmDesk, build_film
from app.panels.findings import FindingsPanel, build_findings
from app.panels.regions import RegionsPanel, build_regions
from app.panels.zero_shot import ZeroShotPanel, build_zero_shot
from app.shelf import Shelf
from app.theme import CSS, TOGGLE_DARK, page_theme
from foundation.errors import InvalidRequest
from serving.client import Client

MAX_FILE_SIZE = "64mb"  # in base64 and with its question it stays below the server's 100 MiB
SESSIONS = 64  # kept at the same time; the oldest are forgotten with their films


def build_page(client: Client) -> Any:
    """The page, not yet launched."""
    desk = FilmDesk(client)
    with gr.Blocks(title=words.TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 600)) as page:
        _build_head()
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=280):
                film = build_film(desk)
            with gr.Column(scale=9, min_width=280), gr.Tabs():
                with gr.Tab(words.CHAT_TAB):
                    build_chat(ChatPanel(client), film)
                with gr.Tab(words.FINDINGS_TAB):
                    build_findings(FindingsPanel(client), Shelf(client, "classify", "classification"), film, page)
                with gr.Tab(words.REGIONS_TAB):
                    build_regions(RegionsPanel(client, desk), Shelf(client, "segment", "segmentation"), film, page)
                with gr.Tab(words.ANOMALY_TAB):
                    build_anomaly(AnomalyPanel(client, desk), Shelf(client, "anomaly", "anomaly"), film, page)
                with gr.Tab(words.COURSE_TAB):
                    build_course(CoursePanel(client), Shelf(client, "fuse", "fusion"), film, page)
                with gr.Tab(words.LABELS_TAB):
                    build_zero_shot(ZeroShotPanel(client), film)
    page.queue(default_concurrency_limit=8, max_size=64, api_open=False)
    return page


def launch(page: Any, port: int | None, *, block: bool = True) -> str:
    """Serve the page on loop-back and return its address. port None takes a free one; `block`: until interrupted.

    Raises InvalidRequest where the port cannot be had.
    """
    try:
        return _launch(page, port, block)
    except OSError:  # Gradio's own way to say so
        raise InvalidRequest(
            f"Port {port} cannot be used for the page: it is taken. Choose another.", param="ui-port"
        ) from None


def _launch(page: Any, port: int | None, block: bool) -> str:
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        prevent_thread_lock=not block,
        share=False,
        quiet=True,
        show_error=False,
        max_file_size=MAX_FILE_SIZE,
        allowed_paths=[],
        footer_links=[],
        run_history=False,  # it would keep films and answers in the browser
        ssr_mode=False,
        enable_monitoring=False,
        state_session_capacity=SESSIONS,
        app_kwargs={"middleware": [Middleware(Guard)]},
        theme=page_theme(),
        css=CSS,
    )
    return str(address)


def run_page(api_url: str, port: int, api_key: str | None = None) -> None:
    """Serve the page on loop-back until interrupted."""
    with Client(api_url, api_key=api_key) as client:
        launch(build_page(client), port)


def _build_head() -> None:
    gr.HTML(f'<p role="note">{html.escape(words.RESEARCH_USE)}</p>', elem_classes="research")
    with gr.Row(elem_classes="head", equal_height=False):
        gr.HTML(f"<h1>{html.escape(words.TITLE)}</h1><span>{html.escape(words.TAGLINE)}</span>", elem_classes="title")
        toggle = gr.Button(words.APPEARANCE, size="sm", min_width=90, scale=0, elem_classes="appearance")
    toggle.click(None, js=TOGGLE_DARK, **QUIET)
