"""POST /v1/chat/completions: ask about a film, get the answer whole or streamed.

What goes wrong before the first piece is answered by a status; what goes wrong later by an error event.
A caller who leaves withdraws the question.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from foundation.errors import EngineUnavailable, VesaliusError
from serving.api.answers import documented, film_report, json_answer, while_connected
from serving.api.conversation import Conversation, read_conversation
from serving.api.routes import routes
from serving.api.service import Asked, Service, service_of, value_of
from serving.http_errors import internal_error
from serving.messages import Outcome
from serving.openai_shapes import DONE, ChatShape, error_event
from serving.schemas.chat import (
    INDEPENDENT,
    INDEPENDENT_BELOW,
    ChatAnswer,
    ChatBody,
    ChatExtras,
    Evidence,
    Logprobs,
    Usage,
)
from serving.schemas.common import Provenance

router = routes("chat")


class EventStream(StreamingResponse):
    """A stream that gives back what it holds however it ends, even if it never started."""

    def __init__(self, events: AsyncGenerator[bytes, None], held: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._held = held
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held, aclosing(self._events):
            await super().__call__(scope, receive, send)


@router.post("/v1/chat/completions", **documented(ChatBody, ChatAnswer))
async def chat_completions(request: Request) -> Response:
    """Ask about a film. The `vesalius` field of the answer (of its last chunk, streamed) carries the evidence."""
    service = service_of(request)
    async with AsyncExitStack() as held:
        async with service.receive(request, ChatBody) as body:
            held.enter_context(service.items.take(1))
            conversation = await while_connected(request, read_conversation(service, body))
            streamed = body.stream
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
        shape = ChatShape(conversation.model.name, with_usage)
        outcomes = await held.enter_async_context(aclosing(_outcomes(service, conversation)))
        if not streamed:
            return json_answer(await while_connected(request, _whole(service, conversation, outcomes, shape)))
        first = await while_connected(request, anext(outcomes))
        value_of(first)  # an error before the first piece still has a status of its own
        return EventStream(_events(service, conversation, first, outcomes, shape), held.pop_all())
    raise AssertionError("unreachable")


async def _outcomes(service: Service, conversation: Conversation) -> AsyncGenerator[Outcome, None]:
    """The engine's pieces, each within the request's time, the first one timed."""
    started = time.monotonic()
    pieces = service.gateway.stream(conversation.request)
    is_first = True
    try:
        while True:
            async with asyncio.timeout(service.time_left_s):
                outcome = await anext(pieces)
            if is_first:
                service.metrics.first_token_seconds.observe(time.monotonic() - started)
                is_first = False
            yield outcome
            if outcome.is_final:
                return
    except TimeoutError:
        raise service.too_late() from None
    except StopAsyncIteration:
        raise EngineUnavailable("The answer broke off before its end. Ask again.") from None
    finally:
        await _close(pieces)


async def _close(pieces: AsyncIterator[Outcome]) -> None:
    if isinstance(pieces, AsyncGenerator):
        await pieces.aclose()


async def _whole(
    service: Service, conversation: Conversation, outcomes: AsyncIterator[Outcome], shape: ChatShape
) -> ChatAnswer:
    text, reports = "", list[Mapping[str, Any]]()
    async for outcome in outcomes:
        value = value_of(outcome)
        text += str(value.get("delta", ""))
        reports += value.get("logprobs", ())
        if outcome.is_final:
            asked = service.finished(conversation.request, outcome)
            told = Logprobs.of(reports) if conversation.request.sampling.logprobs else None
            return shape.whole(text, _finish_reason(asked), _usage(service, asked), _extras(conversation, asked), told)
    raise EngineUnavailable("The answer broke off before its end. Ask again.")


async def _events(
    service: Service,
    conversation: Conversation,
    first: Outcome,
    rest: AsyncIterator[Outcome],
    shape: ChatShape,
) -> AsyncGenerator[bytes, None]:
    yield shape.opening()
    try:
        outcome = first
        while True:
            value = value_of(outcome)
            if value.get("delta") or value.get("logprobs"):
                yield shape.piece(str(value["delta"]), value.get("logprobs", ()))
            if outcome.is_final:
                break
            outcome = await anext(rest)
        asked = service.finished(conversation.request, outcome)
        usage = _usage(service, asked)
        yield shape.closing(_finish_reason(asked), _extras(conversation, asked))
        if shape.with_usage:
            yield shape.usage(usage)
    except VesaliusError as error:
        service.count_error(error.code)
        yield error_event(error)
    except Exception as error:  # the stream has begun: only an event can still tell its reader
        service.count_error("internal_error")
        yield error_event(internal_error(error))
    yield DONE


def _finish_reason(asked: Asked) -> str:
    return "length" if asked.value.get("finish_reason") == "length" else "stop"


def _usage(service: Service, asked: Asked) -> Usage:
    counted = asked.value.get("usage") or {}
    prompt, completion = int(counted.get("prompt_tokens", 0)), int(counted.get("completion_tokens", 0))
    service.metrics.completion_tokens.inc(completion)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _extras(conversation: Conversation, asked: Asked) -> ChatExtras:
    evidence = asked.value.get("evidence")
    reliance = None if evidence is None else evidence.get("reliance")
    notes = list(conversation.notes)
    if reliance is not None and reliance < INDEPENDENT_BELOW:
        notes.append(INDEPENDENT)
    return ChatExtras(
        evidence=None if evidence is None else Evidence.model_validate(evidence),
        film=film_report(conversation.film, conversation.include_film),
        notes=notes,
        provenance=Provenance.from_value(asked.value),
        timings=asked.timings,
    )
