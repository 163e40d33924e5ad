"""How the next token is chosen, and when a text ends: sampling options, the sampler, stop strings.

Independent of the model, so that one-by-one and batched generation choose alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from foundation.errors import InvalidRequest

FinishReason = Literal["stop", "length"]


class SamplingOptions(Protocol):
    """What generation needs to know; `Sampling` here and the server's own type both fit."""

    @property
    def max_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def stop(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. `stop` strings end the text and are not part of it."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {self.max_tokens}; give 1 or more.", param="max_tokens")
        if not 0.0 <= self.temperature <= 2.0:
            raise InvalidRequest(f"temperature is {self.temperature}; give 0 to 2.", param="temperature")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequest(f"top_p is {self.top_p}; give more than 0, at most 1.", param="top_p")
        if any(not stop for stop in self.stop):
            raise InvalidRequest("A stop string is empty; leave it out.", param="stop")


class Sampler:
    """Chooses tokens for one text; its random stream is its own, so neighbours in a batch do not disturb it."""

    def __init__(self, options: SamplingOptions, silent_ids: Sequence[int]) -> None:
        self._options = options
        self._silent = torch.tensor(list(silent_ids), dtype=torch.long)
        self._generator = torch.Generator()
        if options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(options.seed)

    def choose(self, logits: Tensor) -> int:
        """logits (V,) -> a token id; special tokens that must not be said are out of the question."""
        logits = logits.float().cpu().index_fill(0, self._silent, float("-inf"))
        if self._options.temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / self._options.temperature, dim=0)
        ordered, order = probabilities.sort(descending=True)
        kept = ordered.cumsum(0) - ordered < self._options.top_p  # the first one always
        ordered = ordered * kept
        return int(order[torch.multinomial(ordered, 1, generator=self._generator)])


class StopMatcher:
    """Holds text back while it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown now, whether a stop string was met)."""
        self._held += text
        hits = [self._held.find(stop) for stop in self._stops if stop in self._held]
        if hits:
            shown, self._held = self._held[: min(hits)], ""
            return shown, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
