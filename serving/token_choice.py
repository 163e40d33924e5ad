"""The next token of many chats at once: all greedy ones by one operation, each other by its own random stream.

Also what is told of it: log-probabilities after the special tokens no answer may hold were ruled out, before temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from foundation.text_writer import TextWriter
    from serving.messages import Sampling

Value = dict[str, Any]
LEAST = -9999.0  # OpenAI's number for what is as good as impossible


@dataclass(frozen=True)
class Chosen:
    """A token; told: its log-probability among all tokens; report: what a caller who asked is told of it."""

    token: int
    told: float
    report: Value | None


class Chooser:
    """silent: ids that are never said. words: ids to the tokens as the vocabulary writes them."""

    def __init__(self, silent: Sequence[int], end_id: int, words: Callable[[Sequence[int]], list[str]]) -> None:
        self._silent = torch.tensor(list(silent), dtype=torch.long)
        self._end_id = end_id
        self._words = words

    def choose(self, logits: Tensor, asks: Sequence[tuple[Sampling, TextWriter]]) -> list[Chosen | Exception]:
        """logits (n, V), a row for each of `asks`. What goes wrong with one stands in its own place."""
        said = logits.index_fill(1, self._silent.to(logits.device), float("-inf"))
        greedy = said.argmax(1).tolist()
        total = logits.logsumexp(1)
        are_finite = total.isfinite().tolist()  # not where a logit is NaN or infinite
        tokens: list[int | Exception] = []
        for row, (sampling, writer) in enumerate(asks):
            try:
                if not are_finite[row]:
                    raise ArithmeticError("a logit is not finite")
                tokens.append(greedy[row] if sampling.temperature == 0 else writer.choose(said[row]))
            except Exception as error:  # its caller is told, and the others go on
                tokens.append(error)
        picked = torch.tensor([[token if isinstance(token, int) else 0] for token in tokens], device=logits.device)
        told = (logits.gather(1, picked)[:, 0] - total).tolist()
        return [
            token if isinstance(token, Exception) else Chosen(token, told[row], self._report(token, said[row], asks[row][0]))
            for row, token in enumerate(tokens)
        ]

    def _report(self, token: int, said: Tensor, sampling: Sampling) -> Value | None:
        """None for who did not ask, and for the end mark, which is no part of the answer."""
        if not sampling.logprobs or token == self._end_id:
            return None
        scores = said.log_softmax(0)
        best = scores.topk(sampling.top_logprobs) if sampling.top_logprobs else None
        ranked = list(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else []
        words = self._words([token, *(index for index, _ in ranked)])
        top = [[word, max(LEAST, value)] for word, (_, value) in zip(words[1:], ranked, strict=True)]
        return {"token": words[0], "logprob": max(LEAST, float(scores[token])), "top": top}
