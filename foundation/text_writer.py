"""TextWriter: one answer being written, token by token, and the Completion it ends as. `decoder.py` and the server feed it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foundation.prompt import Detokeniser, PromptTokenizer
from foundation.sampling import FinishReason, Sampler, SamplingOptions, StopMatcher


@dataclass(frozen=True)
class Completion:
    """The end of a text: all of it, why it ended, and what it cost in tokens (a film counts its patch tokens)."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] = ()


class TextWriter:
    """One text being written: chooses tokens, turns them into text, sees stop strings and the end.

    Holds all that is particular to one request, so a batch is a list of writers.
    """

    def __init__(self, tokenizer: PromptTokenizer, sampling: SamplingOptions, prompt_tokens: int, *, room: int) -> None:
        self._tokenizer = tokenizer
        self._sampler = Sampler(sampling, tokenizer.silent_ids)
        self._joiner = Detokeniser()
        self._stops = StopMatcher(sampling.stop)
        self._end_id = tokenizer.special_ids["[EOS]"]
        self._limit = min(sampling.max_tokens, room)
        self._prompt_tokens = prompt_tokens
        self._shown: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    def push(self, logits: Tensor) -> str:
        """Choose a token from logits (V,); the text that became certain. `finish_reason` is set when it was the last."""
        return self.accept(self._sampler.choose(logits))

    def choose(self, logits: Tensor) -> int:
        """A token id from logits (V,), as the sampling options and this text's own random stream will have it."""
        return self._sampler.choose(logits)

    def accept(self, token: int) -> str:
        """Take a token that was chosen; as `push`."""
        self.token_ids.append(token)
        if token == self._end_id:
            return self._show(self._joiner.flush(), ends="stop")
        text = self._joiner.push(self._tokenizer.tokens([token])[0])
        if len(self.token_ids) >= self._limit:
            return self._show(text + self._joiner.flush(), ends="length")
        return self._show(text)

    def completion(self) -> Completion:
        """Call once `finish_reason` is set."""
        assert self.finish_reason is not None
        text = "".join(self._shown)
        return Completion(text, self.finish_reason, self._prompt_tokens, len(self.token_ids), tuple(self.token_ids))

    def _show(self, text: str, ends: FinishReason | None = None) -> str:
        shown, is_stopped = self._stops.push(text)
        if is_stopped:
            self.finish_reason = "stop"
        elif ends:
            self.finish_reason = ends
            shown += self._stops.flush()
        self._shown.append(shown)
        return shown
