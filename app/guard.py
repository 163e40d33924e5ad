"""What of the page's web server may be reached: only what a browser on this machine needs to show and use the page.

The framework brings more routes than the page uses (events by name, proxies, histories, editors): all of them are closed,
by naming those that are open. A file may only be one the browser has uploaded, never an address for the server to fetch.
"""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = {
    "GET": re.compile(
        r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)?|/(assets|static|svelte)/.*"
        r"|/gradio_api/(theme\.css|startup-events|app_id|queue/data|upload_progress|heartbeat/\w+)"
        r"|/gradio_api/file=/.*"
    ),
    "POST": re.compile(r"/gradio_api/(upload|queue/join|cancel|reset)"),
}
JOIN = "/gradio_api/queue/join"
MAX_EVENT_BYTES = 1 << 20  # an event carries a question or the path of an upload, never a film
HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; media-src 'none'; object-src 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refusal = _refusal(scope)
        if refusal is None and scope["path"].rstrip("/") == JOIN:
            body = await _read(receive)
            refusal = "This event is not one of the page's." if body is None or _names_an_address(body) else None
            receive = _again(body or b"", receive)
        if refusal is not None:
            await PlainTextResponse(refusal, 403)(scope, receive, send)
            return
        await self._app(scope, receive, _with_headers(send))


def _refusal(scope: Scope) -> str | None:
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1 or re.sub(r":\d+$", "", hosts[0]) not in HOSTS:
        return "This page answers on this machine's own address only."  # a foreign name that resolves here is a trick
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    path = scope["path"]
    if method not in OPEN or not OPEN[method].fullmatch(path if path == "/" else path.rstrip("/")):
        return "There is nothing to be had at this address."
    return None


async def _read(receive: Receive) -> bytes | None:
    """The body, or None where it is too long or its sender has left."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_EVENT_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more for the app, then whatever follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _names_an_address(body: bytes) -> bool:
    """Whether a file of the event is given by an address the server would have to fetch; a broken body counts as one."""
    try:
        content = json.loads(body)
    except ValueError:
        return True
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and ":" in path[:12]:
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sending
