"""Chat: one answer on its way, and Feed: a sequence on its way into the cache. Books only; the lane runs the model.

    waiting -> fed (its prompt, in pieces) -> writing (a token a step) -> scored (without the picture) -> over

A chat owns its random stream, its stop strings and its count of time, so that neighbours can not disturb it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from serving.chat_work import Opening, Picture
from serving.evidence import Evidence, reliance
from serving.messages import Request
from serving.prefix_cache import PictureKey
from serving.refusal import not_assessed
from serving.wording import Wording

if TYPE_CHECKING:
    from foundation.decoder import Decoder
    from foundation.text_writer import TextWriter

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

    def wants(self, length: int) -> int:
        """After how many of the next `length`, the last ones, the next token is asked for."""
        if self.answer_from:
            return max(len(self.scored(length)), length == 1)
        return int(length in (1, self.left))

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
    prompt: Prompt = Prompt(())
    writer: TextWriter | None = None
    wording: Wording = field(default_factory=lambda: Wording(()))
    length: int = 0
    told: float = 0.0
    spent_s: float = 0.0
    text: str = ""  # not yet sent
    is_heard: bool = False  # whether any of its text was sent
    reports: list[Value] = field(default_factory=list)  # log-probabilities not yet sent
    scores: list[float] = field(default_factory=list)  # of the answer without the film
    scoring: int = 0  # how many of those are still to come
    last: Value | None = None

    @property
    def is_refused(self) -> bool:
        """A film that is not assessed is answered by a fixed sentence: the decoder does not get to speak about it."""
        return self.opening.evidence is not None and not self.opening.evidence.assessed

    @property
    def has_first_words(self) -> bool:
        """Somebody waits for what is at hand: neither the rest of the answer nor its scoring may come before it."""
        return bool(self.text) and not self.is_heard

    @property
    def slot(self) -> int:
        """Of the decoder's adapter; 0 for none."""
        return self.opening.adapter.slot if self.opening.adapter is not None else 0

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt and the answer so far."""
        return (*self.prompt.ids, *(self.writer.token_ids if self.writer else ()))

    def begin(self, decoder: Decoder) -> None:
        """Write the prompt. Raises InvalidRequest where the question does not fit."""
        from foundation.text_writer import TextWriter

        self.prompt = self._prompt(decoder, self.opening.picture)
        count = len(self.prompt.ids)
        self.writer = TextWriter(decoder.tokenizer, self.request.sampling, count, room=decoder.context - count)
        self.wording = Wording(self.opening.evidence.findings if self.opening.evidence is not None else ())

    def accept(self, token: int) -> None:
        """Take the next token; what it makes certain is to be sent."""
        assert self.writer is not None
        self.text += self.wording.push(self.writer.accept(token))
        if self.writer.finish_reason:
            self.text += self.wording.flush()

    def without(self, decoder: Decoder) -> list[Prompt]:
        """The same question about the blank and the shuffled film, each of which speaks through its own findings."""
        pictures = self.opening.without(self.stores) if self.opening.without is not None else ()
        return [self._prompt(decoder, picture) for picture in pictures]

    def _prompt(self, decoder: Decoder, picture: Picture | None) -> Prompt:
        turns, film, adapter = self.opening.turns, self.request.film, self.opening.adapter
        if picture is None:
            return Prompt(tuple(decoder.prompt_ids(turns, None, 0)))
        ids = tuple(decoder.prompt_ids(turns, picture.findings, len(picture.tokens)))
        study, digest = film.digest if film is not None else "", adapter.digest if adapter is not None else ""
        return Prompt(ids, picture.tokens, PictureKey.of(self.request.tenant, study, picture.tokens, digest))

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
        self.last = self._last(str(completion.finish_reason), completion.prompt_tokens, completion.completion_tokens, evidence)

    def _last(self, reason: str, prompt_tokens: int, completion_tokens: int, evidence: Evidence | None) -> Value:
        return {
            "finish_reason": reason,
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
            "evidence": evidence.to_plain() if evidence is not None else None,
            "compute_ms": 1000 * self.spent_s,
        }
