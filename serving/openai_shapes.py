"""A chat answer in OpenAI's exact shapes, whole or as the events of a stream.

    role first -> pieces of content -> finish reason with `vesalius` -> usage, when asked for -> [DONE]

Every chunk of an answer carries the same id and creation time. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foundation.errors import VesaliusError
from serving.http_errors import error_object
from serving.schemas.chat import AnswerMessage, ChatAnswer, ChatExtras, Choice, Logprobs, Usage

DONE = b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_event(error: VesaliusError) -> bytes:
    """What a stream says when it cannot go on."""
    return event({"error": error_object(error)})


@dataclass(frozen=True)
class ChatShape:
    """The identity of one answer. `with_usage`: the caller asked for a usage chunk."""

    model: str
    with_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> bytes:
        return event(self._chunk({"role": "assistant", "content": ""}))

    def piece(self, text: str, reports: Sequence[Mapping[str, Any]] = ()) -> bytes:
        """reports: what is told of the tokens behind the text, as an Outcome holds it."""
        chunk = self._chunk({"content": text})
        if reports:
            chunk["choices"][0]["logprobs"] = Logprobs.of(reports).model_dump()
        return event(chunk)

    def closing(self, finish_reason: str, extras: ChatExtras) -> bytes:
        return event({**self._chunk({}, finish_reason), "vesalius": extras.model_dump(mode="json")})

    def usage(self, usage: Usage) -> bytes:
        return event({**self._chunk({}), "choices": [], "usage": usage.model_dump()})

    def whole(
        self, text: str, finish_reason: str, usage: Usage, extras: ChatExtras, logprobs: Logprobs | None = None
    ) -> ChatAnswer:
        choice = Choice.model_validate(
            {"message": AnswerMessage(content=text), "finish_reason": finish_reason, "logprobs": logprobs}
        )
        return ChatAnswer(id=self.id, created=self.created, model=self.model, choices=[choice], usage=usage, vesalius=extras)

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }
        return {**chunk, "usage": None} if self.with_usage else chunk
