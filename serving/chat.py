"""Chat: one answer on its way, and Feed: a sequence on its way into the cache. Books only; the lane runs the model.

    waiting -> fed (its prompt, in pieces) -> writing (a token a step) -> scored (without the picture) -> over

A chat owns its random stream, its stop strings and its count of time, so that neighbours can not disturb it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from serving.chat_work import Opening
from serving.evidence import Evidence, reliance
from serving.messages import Request
from serving.prefix_cache import PictureKey

if TYPE_CHECKING:
    from foundation.decoder import Decoder, TextWriter

Value = dict[str, Any]
Finish = Callable[[Value], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids, and the picture they speak of: its patch tokens (N, D) and the key its keys and values are kept under."""

    ids: tuple[int, ...]
    patch_tokens: Tensor | None = None
    key: PictureKey | None = None


@dataclass(eq=False)
class Feed:
    """ids: what is to be in `row`; `fed` of them are. answer_from: where the answer to be scored begins, 0 to write one.

    embedded (n, W): the ids from `begun` on.
    """

    chat: Chat
    prompt: Prompt
    row: int
    ids: Sequence[int]
    begun: int
    embedded: Tensor
    answer_from: int = 0
    fed: int = 0
    log_probability: float = 0.0

    def __post_init__(self) -> None:
        self.fed = self.begun

    @property
    def left(self) -> int:
        return self.begun + len(self.embedded) - self.fed

    def piece(self, length: int) -> Tensor:
        here = self.fed - self.begun
        return self.embedded[here : here + length]

    def scored(self, length: int) -> range:
        """The places of the next `length` at which a token of the answer is told in advance."""
        if not self.answer_from:
            return range(0)
        return range(max(self.fed, self.answer_from - 1), min(self.fed + length, len(self.ids) - 1))


@dataclass(eq=False)
class Chat:
    """length: its tokens in the cache. told: log-probability of the answer so far, given the film as it is."""

    request: Request
    opening: Opening
    finish: Finish
    stores: bool
    prompts: tuple[Prompt, ...] = ()
    writer: TextWriter | None = None
    length: int = 0
    told: float = 0.0
    spent_s: float = 0.0
    text: str = ""  # not yet sent
    reports: list[Value] = field(default_factory=list)  # log-probabilities not yet sent
    scores: list[float] = field(default_factory=list)  # of the answer without the film
    last: Value | None = None

    @property
    def is_refused(self) -> bool:
        """A film that is not assessed is answered by a fixed sentence: the decoder does not get to speak about it."""
        return self.opening.evidence is not None and not self.opening.evidence.assessed

    @property
    def needs_scores(self) -> bool:
        return self.opening.evidence is not None and len(self.prompts) > 1

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt and the answer so far."""
        return (*self.prompts[0].ids, *(self.writer.token_ids if self.writer else ()))

    def begin(self, decoder: Decoder) -> None:
        """Write the prompts. Raises InvalidRequest where the question does not fit."""
        from foundation.decoder import TextWriter

        self.prompts = tuple(self._prompts(decoder))
        count = len(self.prompts[0].ids)
        self.writer = TextWriter(decoder.tokenizer, self.request.sampling, count, room=decoder.context - count)

    def _prompts(self, decoder: Decoder) -> list[Prompt]:
        turns, film = self.opening.turns, self.request.film
        if not self.opening.pictures:
            return [Prompt(tuple(decoder.prompt_ids(turns, None, 0)))]
        study = film.digest if film is not None else ""
        prompts = []
        for picture in self.opening.pictures:
            ids = tuple(decoder.prompt_ids(turns, picture.findings, len(picture.tokens)))
            key = PictureKey.of(self.request.tenant, study, picture.tokens, self.opening.adapter_digest)
            prompts.append(Prompt(ids, picture.tokens, key))
        return prompts

    def refuse(self, decoder: Decoder) -> None:
        """The whole answer about a film that is not assessed."""
        evidence = self.opening.evidence
        assert evidence is not None
        self.text = not_assessed(evidence.looks_like)
        encode = decoder.tokenizer.encode_plain
        question = self.opening.turns[-1].text if self.opening.turns else ""
        self.last = self._last("stop", len(encode(question)), len(encode(self.text)), evidence)

    def end(self) -> None:
        """All is written and scored."""
        assert self.writer is not None
        completion, evidence = self.writer.completion(), self.opening.evidence
        if evidence is not None and self.scores:
            count = len(self.writer.token_ids)
            evidence = replace(evidence, reliance=reliance(self.told / count, [score / count for score in self.scores]))
        self.last = self._last(
            str(completion.finish_reason), completion.prompt_tokens, completion.completion_tokens, evidence
        )

    def _last(self, reason: str, prompt_tokens: int, completion_tokens: int, evidence: Evidence | None) -> Value:
        return {
            "finish_reason": reason,
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
            "evidence": evidence.to_plain() if evidence is not None else None,
            "compute_ms": 1000 * self.spent_s,
        }


def not_assessed(looks_like: str) -> str:
    """What is said of a film outside what the model was trained for."""
    shown = f"this looks like {looks_like}" if looks_like else "this is not a film of a kind I know"
    return f"Not assessed: {shown}. I can only answer questions about the films I was trained on."
