"""Chat answered by another engine that speaks OpenAI's protocol: which one, and whether it may be spoken to at all.

    --chat-backend openai:http://127.0.0.1:8001/v1 --chat-allow http://127.0.0.1:8001/v1 --chat-model NAME

The address must be on the list given at the start, letter by letter once both are written the same way. Its key comes from an
environment variable, never from the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from foundation.errors import InvalidRequest

KEY_VARIABLE = "VESALIUS_CHAT_KEY"
_KIND = "openai:"


@dataclass(frozen=True)
class ChatBackend:
    """url: up to and with `/v1`. model: what the engine there calls its model."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, text: str, allowed: Sequence[str], model: str, environment: Mapping[str, str]) -> ChatBackend:
        """text: "openai:URL". Raises InvalidRequest where it is none, or its address is not on the list."""
        if not text.startswith(_KIND):
            raise InvalidRequest(f"--chat-backend is {text!r}; write openai:URL.", param="chat-backend")
        url = plain_url(text.removeprefix(_KIND), "chat-backend")
        if url not in {plain_url(one, "chat-allow") for one in allowed}:
            raise InvalidRequest(f"{url} is not allowed. Add --chat-allow {url} if films may go there.", param="chat-allow")
        if not model:
            raise InvalidRequest("Say with --chat-model what the chat engine calls its model.", param="chat-model")
        return cls(url, model, environment.get(KEY_VARIABLE) or None)


def plain_url(text: str, option: str) -> str:
    """scheme://host[:port]/path in lower case where case means nothing, without a last slash."""
    parts = urlsplit(text.strip())
    try:
        port = parts.port
    except ValueError:
        port = -1
    is_plain = parts.scheme in ("http", "https") and parts.hostname and not parts.username and not parts.query
    if not is_plain or parts.fragment or parts.password or port == -1 or ".." in parts.path.split("/"):
        raise InvalidRequest(
            f"--{option}: {text[:200]!r} is no plain http(s) address such as http://host:8001/v1.", param=option
        )
    host = str(parts.hostname)
    host = f"[{host}]" if ":" in host else host
    shown = f"{host}:{port}" if port is not None and port != {"http": 80, "https": 443}[parts.scheme] else host
    return f"{parts.scheme}://{shown}{parts.path.rstrip('/')}"
