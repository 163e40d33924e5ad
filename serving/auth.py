"""Who may speak to the server: this machine alone where there are no keys, the holder of a key with the scope otherwise.

Without keys the server listens on a loop-back address only, and answers only requests that name this machine in
their Host and Origin headers, so that a web page open in the user's browser cannot reach it. The guard stands in front
of routing: what it does not let through is never looked up, whatever its method or address.
"""

from __future__ import annotations

import ipaddress
import os
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from foundation.errors import Forbidden, InvalidRequest, Unauthorized, VesaliusError
from serving.call import current_call
from serving.http_errors import error_response
from serving.keys import ApiKey, KeyRing
from serving.rates import RateLimiter
from serving.scopes import scope_for

KEY_VARIABLE = "VESALIUS_API_KEY"


def key_from_environment() -> str | None:
    """The API key of this process, for the server and for a client of it alike; None where none is set."""
    return os.environ.get(KEY_VARIABLE) or None


@lru_cache(256)
def is_loop_back(host: str) -> bool:
    """Whether a host name or address can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, ring: KeyRing) -> None:
    """Refuse to start on an address that others can reach while nobody could be told from anybody."""
    if is_loop_back(host) or (not ring.is_open and ring.active):
        return
    raise InvalidRequest(
        f"'{host}' can be reached from other machines, and there is no API key. Make one with "
        f"`vesalius keys add NAME` (or set {KEY_VARIABLE}), or serve on 127.0.0.1.",
        param="host",
    )


def operator_ring(api_key: str | None) -> KeyRing:
    """A ring of the operator's own key, which may do everything; without one it is open."""
    return KeyRing(given=() if api_key is None else (ApiKey.given(api_key, "operator"),), guards=api_key is not None)


def _names_this_machine(headers: Headers) -> bool:
    host = urlsplit("//" + headers.get("host", "")).hostname or ""
    origin = headers.get("origin")
    return is_loop_back(host) and (origin is None or is_loop_back(urlsplit(origin).hostname or ""))


class KeyGuard:
    """ASGI middleware in front of every route: key, scope and rate where there are keys, the loop-back rule where not."""

    def __init__(self, app: ASGIApp, ring: KeyRing, rates: RateLimiter | None = None) -> None:
        self.app = app
        self._ring = ring
        self._rates = rates or RateLimiter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # no route speaks it
        else:
            try:
                self._check(scope)
            except VesaliusError as error:
                await error_response(error)(scope, receive, send)
                return
            await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raises Unauthorized, Forbidden or Overloaded."""
        headers = Headers(scope=scope)
        key = self._ring.find(_bearer(headers))
        if key is not None:
            current_call().caller = key.id
        if self._ring.is_open:
            if not _names_this_machine(headers):
                raise _not_this_machine()
            return
        if key is None:
            raise Unauthorized("A valid API key is needed: send 'Authorization: Bearer KEY'.")
        self._admit(key, scope["method"], scope["path"])

    def _admit(self, key: ApiKey, method: str, path: str) -> None:
        needed = scope_for(method, path)
        if needed is None:
            return  # health is never rationed
        if needed not in key.scopes:
            raise Forbidden(f"This key is not good for the scope '{needed}', which this address needs. Use another key.")
        self._rates.admit(key.id, key.per_minute)


def _bearer(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _not_this_machine() -> Unauthorized:
    return Unauthorized(
        "This server runs without a key and answers only requests that name this machine (127.0.0.1 or localhost). "
        "Make a key with `vesalius keys add NAME` to serve under another name."
    )
