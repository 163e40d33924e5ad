"""`vesalius ask`, `zero-shot` and `predict`: films sent to a running server, or to one that is started for the one answer."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.predict_command import add_predict_options, bar, finding_line, predict
from app.serve_command import KEY_VARIABLE, server_config
from app.server_options import add_model
from app.show import Show
from app.words import RESEARCH_USE
from foundation.errors import FilmUnreadable, InvalidRequest

if TYPE_CHECKING:
    from serving.client import Client


DEFAULT_SERVER = "http://127.0.0.1:8000"


def add_film_options(command: argparse.ArgumentParser, name: str) -> None:
    """name: "ask", "zero-shot" or "predict"."""
    if name == "predict":
        add_predict_options(command)
    elif name == "ask":
        command.add_argument("file", type=Path)
        command.add_argument("question")
        command.add_argument("--adapter", metavar="NAME", help="a chat adapter to answer through; see `adapters list`")
    else:
        command.add_argument("files", type=Path, nargs="+", metavar="FILE")
    if name == "zero-shot":
        command.add_argument("--label", action="append", required=True, dest="labels")
        command.add_argument("--template", action="append", dest="templates", help='a sentence with "{}"')
        command.add_argument("--scoring", choices=("softmax", "sigmoid", "pairwise"))
    command.add_argument("--server", default=DEFAULT_SERVER, help="a running server, or `none` to start one")
    add_model(command)


@contextmanager
def open_client(chosen: argparse.Namespace) -> Iterator[Client]:
    """A client of the running server, or of one that lives as long as the block."""
    import httpx

    from serving.client import Client

    key = os.environ.get(KEY_VARIABLE) or None
    if chosen.server != "none":
        try:
            httpx.get(f"{chosen.server}/healthz", timeout=1.0, trust_env=False).raise_for_status()
        except httpx.HTTPError:
            if chosen.server != DEFAULT_SERVER:
                raise InvalidRequest(f"No server answers at {chosen.server}; start it or leave --server out.") from None
        else:
            with Client(chosen.server, api_key=key) as client:
                yield client
            return
    from serving.server import background

    config = server_config(chosen, "127.0.0.1", 0)
    with background(config) as url, Client(url, api_key=config.page_key) as client:
        yield client


def film_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FilmUnreadable(f"There is no file {str(path)!r}.", param="file")
    return path.read_bytes()


def run_ask(chosen: argparse.Namespace, show: Show) -> None:
    film = film_bytes(chosen.file)
    with open_client(chosen) as client:
        pieces = list(client.ask(chosen.question, film=film, model=chosen.adapter))
    text = "".join(piece.text for piece in pieces)
    extras = next((piece.extras for piece in reversed(pieces) if piece.extras), None)
    answer = {"answer": text, "vesalius": extras.model_dump() if extras else None}
    lines = [text]
    if extras and extras.evidence:
        lines += [finding_line(one.label, one.probability, one.threshold) for one in extras.evidence.findings]
    show(answer, "\n".join([*lines, RESEARCH_USE]))


def run_zero_shot(chosen: argparse.Namespace, show: Show) -> None:
    films = [film_bytes(path) for path in chosen.files]
    with open_client(chosen) as client:
        answer = client.zero_shot(films, chosen.labels, templates=chosen.templates, scoring=chosen.scoring)
    _show_items(chosen.files, answer.model_dump(mode="json"), show)


def run_predict(chosen: argparse.Namespace, show: Show) -> None:
    films = [film_bytes(path) for path in chosen.files]
    with open_client(chosen) as client:
        predict(client, chosen, films, show)


def _show_items(files: Sequence[Path], answer: dict[str, Any], show: Show) -> None:
    lines = []
    for path, item in zip(files, answer["data"], strict=True):
        lines.append(f"{path.name}")
        if item.get("error"):
            lines.append(f"  {item['error']['message']}")
        elif not item.get("assessed", True):
            lines.append(f"  not assessed: this looks like {item.get('looks_like') or 'something else'}")
        else:
            lines += [f"  {bar(one['label'], one['score'])}" for one in item["scores"]]
    show(answer, "\n".join([*lines, RESEARCH_USE]))
