"""ChatPiece: a streamed chat as its caller has it, made of the events that the server sends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serving.connection import checked, error_of_body
from serving.schemas.chat import ChatChunk, ChatExtras, Usage


@dataclass(frozen=True)
class ChatPiece:
    """A piece of a streamed answer. The last one has a finish reason, the usage and what the answer rests on."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    extras: ChatExtras | None = None


def pieces(events: Iterator[dict[str, Any]]) -> Iterator[ChatPiece]:
    """Text as it comes; finish reason, usage and extras together in the last piece."""
    finish_reason, extras, usage = None, None, None
    for content in events:
        if "error" in content:
            raise error_of_body(content["error"])
        chunk = checked(ChatChunk, content)
        usage = chunk.usage or usage
        extras = chunk.vesalius or extras
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            if choice.delta.content:
                yield ChatPiece(choice.delta.content)
    yield ChatPiece(finish_reason=finish_reason, usage=usage, extras=extras)
