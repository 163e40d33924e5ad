"""ForwardingGateway: all as behind it, but chat is answered by another engine that speaks OpenAI's protocol.

    chat --> assessed by our own model (gate, findings) --no--> the fixed sentence; the film goes nowhere
                                                        --yes-> the one address --server-sent events--> Outcomes

What arrives is read piece by piece and told under our own ids; nothing of the other engine's words but the answer is passed on.
No proxy, no redirect, no other address. Our evidence is the gate's verdict and the findings; there is no reliance.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
from PIL import Image

from foundation.errors import EngineUnavailable, Overloaded, VesaliusError
from serving.chat_backend import ChatBackend
from serving.config import FINDINGS_ADAPTER
from serving.gateway import Gateway, ModelInfo, Readiness, next_request_id
from serving.mask_files import MaskFile
from serving.messages import Film, Operation, Outcome, RawFilm, Request
from serving.refusal import not_assessed
from serving.transport import failure

log = logging.getLogger("serving.forwarding")
Value = dict[str, Any]
AWAY = "The chat engine behind this server does not answer as it should. Try again later."
BUSY = "The chat engine behind this server is busy. Try again in a moment."
_MAX_LINE_BYTES = 1 << 20
_REASONS = ("stop", "length")


class ForwardingGateway:
    """Implements `Gateway`. findings_adapter: whose probabilities go into the evidence, where the model has it."""

    def __init__(self, behind: Gateway, backend: ChatBackend, findings_adapter: str = FINDINGS_ADAPTER) -> None:
        self._behind = behind
        self._backend = backend
        self._findings_adapter = findings_adapter
        headers = {"Authorization": f"Bearer {backend.key}"} if backend.key else {}
        timeout = httpx.Timeout(300.0, connect=10.0)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False, follow_redirects=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def decode(self, raw: RawFilm) -> Film:
        return await self._behind.decode(raw)

    async def mask_file(self, wanted: MaskFile) -> bytes:
        return await self._behind.mask_file(wanted)

    async def administer(self, request: Request) -> Outcome:
        return await self._behind.administer(request)

    async def ask(self, request: Request) -> Outcome:
        return await self._behind.ask(request)

    def forget(self, tenant: str, study: str = "") -> None:
        self._behind.forget(tenant, study)

    def readiness(self) -> Readiness:
        return self._behind.readiness()

    def models(self) -> list[ModelInfo]:
        """The base can chat now, whether or not it has a decoder of its own."""
        return [_chatting(one) if one.kind == "base" else one for one in self._behind.models()]

    async def stream(self, request: Request) -> AsyncGenerator[Outcome, None]:
        started = time.monotonic()
        try:
            evidence = await self._evidence(request)
            if evidence is not None and not evidence["assessed"]:
                sentence = not_assessed(evidence["looks_like"])
                yield Outcome(request.id, {"delta": sentence}, is_final=False)
                ended: Value = {"finish_reason": "stop", "usage": {}}
            else:
                ended = {}
                async with aclosing(self._asked(request)) as values:  # a caller who leaves is felt at the other end
                    async for value in values:
                        if "delta" in value:
                            yield Outcome(request.id, value, is_final=False)
                        else:
                            ended = value
            yield Outcome(request.id, self._last(request, ended, evidence, started))
        except VesaliusError as error:
            yield failure(request.id, error)

    async def _evidence(self, request: Request) -> Value | None:
        """What our own model says of the film. Raises what went wrong with it."""
        if request.film is None:
            return None
        has_findings = any(one.name == self._findings_adapter for one in self._behind.models())
        operation: Operation = "classify" if has_findings else "zero_shot"
        options = {} if has_findings else {"labels": ["a film"], "templates": ["{}"], "negatives": None, "scoring": "softmax"}
        looks = replace(
            request,
            id=next_request_id(),
            operation=operation,
            adapter=self._findings_adapter if has_findings else None,
            turns=(),
            options=options,
        )
        outcome = await self._behind.ask(looks)
        if outcome.value is None:
            raise EngineUnavailable("The film could not be assessed. Try again later.")
        value = outcome.value
        rows = zip(*(value.get(name, ()) for name in ("labels", "probabilities", "thresholds")), strict=False)
        findings = [{"label": label, "probability": one, "threshold": threshold} for label, one, threshold in rows]
        verdict = {"assessed": bool(value["assessed"]), "looks_like": str(value["looks_like"])}
        return {**verdict, "findings": findings if has_findings else [], "heatmap": None, "maps": None, "reliance": None}

    async def _asked(self, request: Request) -> AsyncGenerator[Value, None]:
        """{"delta"} ..., then {"finish_reason", "usage"}. Raises EngineUnavailable or Overloaded, in our words."""
        content = forwarded(request, self._backend.model)
        ended: Value = {"finish_reason": "", "usage": {}}
        try:
            async with self._client.stream("POST", f"{self._backend.url}/chat/completions", json=content) as answer:
                if answer.status_code != 200:
                    log.warning("the chat engine answered with status %d", answer.status_code)
                    raise Overloaded(BUSY, retry_after_s=1.0) if answer.status_code == 429 else EngineUnavailable(AWAY)
                async with aclosing(_chunks(answer)) as chunks:
                    async for chunk in chunks:
                        for value in _values(chunk, ended, request):
                            yield value
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
            raise EngineUnavailable(AWAY) from None
        if not ended["finish_reason"]:
            raise EngineUnavailable(AWAY)
        yield ended

    def _last(self, request: Request, ended: Value, evidence: Value | None, started: float) -> Value:
        usage = ended.get("usage") or {}
        provenance = {
            "model": self._backend.model,
            "adapter": None,
            "pixels": request.film.digest if request.film is not None else None,
            "preprocessing": None,
        }
        return {
            "finish_reason": ended["finish_reason"],
            "usage": {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")},
            "evidence": evidence,
            "compute_ms": 1000 * (time.monotonic() - started),
            "provenance": provenance,
        }


def forwarded(request: Request, model: str) -> Value:
    """The body of the question as the other engine gets it: no tenant, no id, the film as the PNG our model sees."""
    messages: list[Value] = [{"role": turn.role, "content": turn.text} for turn in request.turns]
    if request.film is not None:
        image = {"type": "image_url", "image_url": {"url": png_uri(request.film)}}
        messages[-1]["content"] = [image, {"type": "text", "text": messages[-1]["content"]}]
    sampling = request.sampling
    content: Value = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.seed is not None:
        content["seed"] = sampling.seed
    if sampling.stop:
        content["stop"] = list(sampling.stop)
    if sampling.logprobs:
        content |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return content


def png_uri(film: Film) -> str:
    file = io.BytesIO()
    Image.fromarray(film.pixels).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def _chunks(answer: httpx.Response) -> AsyncGenerator[Mapping[str, Any], None]:
    """The JSON of each event. A line without an end is refused before it fills the memory."""
    held = b""
    async for data in answer.aiter_bytes():
        held += data
        *lines, held = held.split(b"\n")
        if len(held) > _MAX_LINE_BYTES:
            raise ValueError
        for line in lines:
            if line.startswith(b"data:"):
                text = line.removeprefix(b"data:").strip()
                if text == b"[DONE]":
                    return
                yield json.loads(text)


def _values(chunk: Mapping[str, Any], ended: Value, request: Request) -> list[Value]:
    """The pieces of a chunk; `ended` is told the reason and the usage."""
    ended["usage"] = chunk.get("usage") or ended["usage"]
    values: list[Value] = []
    for choice in (chunk.get("choices") or [])[:1]:
        reports = [_report(one) for one in ((choice.get("logprobs") or {}).get("content") or [])]
        text = (choice.get("delta") or {}).get("content") or ""
        if text or reports:
            told = {"logprobs": reports} if reports and request.sampling.logprobs else {}
            values.append({"delta": str(text), **told})
        if reason := choice.get("finish_reason"):
            ended["finish_reason"] = reason if reason in _REASONS else "stop"
    return values


def _report(one: Mapping[str, Any]) -> Value:
    top = [[str(other["token"]), float(other["logprob"])] for other in one.get("top_logprobs") or []]
    return {"token": str(one["token"]), "logprob": float(one["logprob"]), "top": top}


def _chatting(info: ModelInfo) -> ModelInfo:
    return info if "chat" in info.capabilities else replace(info, capabilities=(*info.capabilities, "chat"))
