"""Who may speak to the server: this machine alone without a key, anyone with the key otherwise.

Without a key the server listens on a loop-back address only, and answers only requests that name this
machine in their Host and Origin headers, so that a web page open in the user's browser cannot reach it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from foundation.errors import InvalidRequest, Unauthorized
from serving.http_errors import error_response

KEY_VARIABLE = "VESALIUS_API_KEY"
MIN_KEY_CHARS = 16


def key_from_environment() -> str | None:
    """The API key of this process, for the server and for a client of it alike; None where none is set."""
    return os.environ.get(KEY_VARIABLE) or None


def is_loop_back(host: str) -> bool:
    """Whether a host name or address can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, api_key: str | None) -> None:
    """Refuse to start on an address others can reach without a key, or with a key that can be guessed."""
    if api_key is not None and len(api_key) < MIN_KEY_CHARS:
        raise InvalidRequest(
            f"The API key is shorter than {MIN_KEY_CHARS} characters. "
            'Make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"',
            param="api_key",
        )
    if api_key is None and not is_loop_back(host):
        raise InvalidRequest(
            f"'{host}' can be reached from other machines, and no API key is set. Set VESALIUS_API_KEY, or serve on 127.0.0.1.",
            param="host",
        )


def _names_this_machine(headers: Headers) -> bool:
    host = urlsplit("//" + headers.get("host", "")).hostname or ""
    origin = headers.get("origin")
    return is_loop_back(host) and (origin is None or is_loop_back(urlsplit(origin).hostname or ""))


class KeyGuard:
    """ASGI middleware in front of every route: the key when there is one, the loop-back rule when there is none."""

    def __init__(self, app: ASGIApp, api_key: str | None = None) -> None:
        self.app = app
        self._key_hash = hashlib.sha256(api_key.encode()).digest() if api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        problem = self._problem(Headers(scope=scope))
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await error_response(problem)(scope, receive, send)

    def _problem(self, headers: Headers) -> Unauthorized | None:
        if self._key_hash is None:
            if _names_this_machine(headers):
                return None
            return Unauthorized(
                "This server runs without a key and answers only requests that name this machine "
                f"(127.0.0.1 or localhost). Set {KEY_VARIABLE} to serve under another name."
            )
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        if scheme.lower() == "bearer" and hmac.compare_digest(given, self._key_hash):
            return None
        return Unauthorized("A valid API key is needed: send 'Authorization: Bearer KEY'.")
