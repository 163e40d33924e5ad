"""The chat lane: several answers written at the same time, a few tokens each a turn.

    Opening --Chat--> {"delta": ...} ... {"finish_reason", "usage", "evidence"}

Each chat owns its key-value cache, its sampler and its stop strings, so that neighbours cannot disturb it; a chat that
fails ends alone. The engine gives the lane a turn between encoder batches. A film that is not assessed is answered by
a fixed sentence: the decoder does not get to speak about it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from adapters.bank import AdapterBank
from foundation.errors import DeadlineExceeded, VesaliusError
from serving.chat_residency import ChatResident
from serving.chat_work import Opening
from serving.evidence import Evidence, reliance
from serving.messages import Outcome, Request
from serving.transport import failure

if TYPE_CHECKING:
    from foundation.decoder import Decoder

Value = dict[str, Any]
TOO_LATE = "The answer was not finished in time. Ask for fewer max_tokens, or try again later."


class Chat:
    """One answer being written. `pieces` yields values; each `next` costs at most one forward of the decoder."""

    def __init__(self, request: Request, opening: Opening, decoder: Decoder, bank: AdapterBank) -> None:
        self.request = request
        self._opening = opening
        self._decoder = decoder
        self._bank = bank
        self._spent_s = 0.0
        self._values = self._not_assessed() if self._is_refused else self._written()

    @property
    def adapter(self) -> ChatResident | None:
        """Whose place on the decoder must stay until the chat ends."""
        return self._opening.adapter

    def _through(self) -> AbstractContextManager[None]:
        """A forward of the decoder goes through the chat's adapter within this block; never held across a `yield`."""
        return self._bank.rows([self.adapter.slot if self.adapter else 0])

    @property
    def _is_refused(self) -> bool:
        return self._opening.evidence is not None and not self._opening.evidence.assessed

    def advance(self, tokens: int) -> tuple[str, Value | None]:
        """Go on by up to `tokens` tokens: the text that became certain, and the last value once it is over."""
        start, text = time.perf_counter(), ""
        try:
            for _ in range(tokens):
                value = next(self._values)
                if "finish_reason" in value:
                    return text, {**value, "compute_ms": 1000 * (self._spent_s + time.perf_counter() - start)}
                text += value["delta"]
            return text, None
        finally:
            self._spent_s += time.perf_counter() - start

    def _written(self) -> Iterator[Value]:
        from foundation.decoder import TextWriter

        decoder, pictures = self._decoder, self._opening.pictures
        prompts = [decoder.prompt_ids(self._opening.turns, picture.findings, len(picture.tokens)) for picture in pictures] or [
            decoder.prompt_ids(self._opening.turns, None, 0)
        ]
        ids = prompts[0]
        writer = TextWriter(decoder.tokenizer, self.request.sampling, len(ids), room=decoder.context - len(ids))
        embedded = decoder.embed(ids, pictures[0].tokens if pictures else None)
        with self._through():
            out = decoder.model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1)
        while True:
            yield {"delta": writer.push(out.logits[0, -1])}
            if writer.finish_reason:
                break
            newest = torch.tensor([[writer.token_ids[-1]]], device=out.logits.device)
            with self._through():
                out = decoder.model(input_ids=newest, past_key_values=out.past_key_values, use_cache=True)
        completion = writer.completion()
        evidence = self._opening.evidence
        if evidence is not None:
            evidence = replace(evidence, reliance=self._reliance(prompts, writer.token_ids))
        usage = (completion.prompt_tokens, completion.completion_tokens)
        yield _last(str(completion.finish_reason), usage, evidence)

    def _reliance(self, prompts: list[list[int]], answer: list[int]) -> float:
        """Each picture speaks through its own tokens and its own findings; see `evidence.py`."""
        pairs = zip(prompts, self._opening.pictures, strict=True)
        with self._through():
            scores = [float(self._decoder.score(ids, answer, picture.tokens[None])[0]) for ids, picture in pairs]
        return reliance(scores[0], scores[1:])

    def _not_assessed(self) -> Iterator[Value]:
        evidence = self._opening.evidence
        assert evidence is not None
        sentence = not_assessed(evidence.looks_like)
        yield {"delta": sentence}
        encode = self._decoder.tokenizer.encode_plain
        question = self._opening.turns[-1].text if self._opening.turns else ""
        yield _last("stop", (len(encode(question)), len(encode(sentence))), evidence)


class ChatLane:
    """The chats under way. `finish` adds provenance and checks a value before it becomes an Outcome."""

    def __init__(self, decoder: Decoder | None, tokens_per_turn: int, bank: AdapterBank | None = None) -> None:
        self._decoder = decoder
        self._bank = bank
        self._tokens_per_turn = tokens_per_turn
        self._chats: dict[int, tuple[Chat, Callable[[Value], Mapping[str, Any]]]] = {}

    def __len__(self) -> int:
        return len(self._chats)

    def start(self, request: Request, opening: Opening, finish: Callable[[Value], Mapping[str, Any]]) -> None:
        assert self._decoder is not None
        assert self._bank is not None
        self._chats[request.id] = (Chat(request, opening, self._decoder, self._bank), finish)

    @property
    def adapters(self) -> frozenset[str]:
        """Digests of the adapters that chats under way are written through."""
        return frozenset(chat.adapter.digest for chat, _ in self._chats.values() if chat.adapter is not None)

    def cancel(self, request_id: int) -> bool:
        return self._chats.pop(request_id, None) is not None

    def turn(self, now: float, on_fault: Callable[[int, Exception, str], Outcome]) -> list[Outcome]:
        """Each chat goes on by a few tokens."""
        outcomes: list[Outcome] = []
        for chat, finish in list(self._chats.values()):
            made = self._advance(chat, finish, now, on_fault)
            if any(outcome.is_final for outcome in made):
                del self._chats[chat.request.id]
            outcomes += made
        return outcomes

    def _advance(
        self,
        chat: Chat,
        finish: Callable[[Value], Mapping[str, Any]],
        now: float,
        on_fault: Callable[[int, Exception, str], Outcome],
    ) -> list[Outcome]:
        number, deadline = chat.request.id, chat.request.deadline
        if deadline is not None and deadline <= now:
            return [failure(number, DeadlineExceeded(TOO_LATE))]
        try:
            with torch.inference_mode():
                text, last = chat.advance(self._tokens_per_turn)
            made = [Outcome(number, {"delta": text}, is_final=False)] if text else []
            return made if last is None else [*made, Outcome(number, finish(last))]
        except VesaliusError as error:
            return [failure(number, error)]
        except Exception as error:  # the caller must have an answer, and the other chats go on
            return [on_fault(number, error, chat.request.trace)]


def not_assessed(looks_like: str) -> str:
    """What is said of a film outside what the model was trained for."""
    shown = f"this looks like {looks_like}" if looks_like else "this is not a film of a kind I know"
    return f"Not assessed: {shown}. I can only answer questions about the films I was trained on."


def _last(finish_reason: str, usage: tuple[int, int], evidence: Evidence | None) -> Value:
    return {
        "finish_reason": finish_reason,
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]},
        "evidence": evidence.to_plain() if evidence is not None else None,
    }
