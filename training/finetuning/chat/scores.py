"""What answers are worth: closed ones by accuracy, open ones by token F1 and exact match; all with intervals over patients.

    answer_all     every question asked greedily, and of closed ones how likely "yes" is against "no"
    ChatScores     hits and F1 of one way of answering (N,), undefined (NaN) where a measure does not apply
    majority       what always giving the commonest training answer of each kind of question reaches

A closed answer counts by what it says: yes or no by its first word, a choice by its words. "It cannot be told" is wrong.
`lean` counts the likelier of yes and no, so that an answer that declines is still compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.text import squad
from transformers import GenerationConfig

from adapters.tasks.chat import ChatResult
from foundation.decoder import Decoder
from foundation.prompt import detokenise
from training.finetuning.chat.stated import SeenFilm
from training.finetuning.chat.trainee import lean_to_yes
from training.manifests.qa import QaRow
from training.measuring.metrics import Floats

MAX_TOKENS = 32
_BATCH = 32


@torch.inference_mode()
def answer_all(decoder: Decoder, pairs: Sequence[QaRow], seen: Sequence[SeenFilm]) -> tuple[ChatResult, ...]:
    """One greedy answer a question, as the server writes it, through whatever LoRA is on the decoder."""
    prompts = [decoder.prompt_ids(pair.turns, film.findings, len(film.tokens)) for pair, film in zip(pairs, seen, strict=True)]
    results: list[ChatResult | None] = [None] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda place: len(prompts[place]))  # like lengths together: little padding
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        made = _write([prompts[place] for place in places], [seen[place].tokens for place in places], decoder)
        for place, (text, lean) in zip(places, made, strict=True):
            results[place] = ChatResult(text, lean if pairs[place].is_closed else None)
    return tuple(result for result in results if result is not None)


def _write(prompts: Sequence[list[int]], tokens: Sequence[Tensor], decoder: Decoder) -> list[tuple[str, float]]:
    """Text and probability of "yes" against "no" of several prompts at once, padded in front."""
    rows = [decoder.embed(ids, picture)[0] for ids, picture in zip(prompts, tokens, strict=True)]
    longest = max(len(row) for row in rows)
    embedded = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long().to(embedded.device)
    room = min(MAX_TOKENS, decoder.context - longest)
    made = decoder.model.generate(
        inputs_embeds=embedded,
        attention_mask=mask,
        generation_config=GenerationConfig(**decoder.generation_config(), max_new_tokens=room),
        return_dict_in_generate=True,
        output_logits=True,
    )
    leans = torch.sigmoid(lean_to_yes(decoder, made.logits[0])).tolist()
    return [(_text(decoder, ids), lean) for ids, lean in zip(made.sequences.tolist(), leans, strict=True)]


def _text(decoder: Decoder, ids: list[int]) -> str:
    said = ids[: ids.index(decoder.end_id)] if decoder.end_id in ids else ids
    return detokenise(decoder.tokenizer.tokens(said))


@dataclass(frozen=True, eq=False)
class ChatScores:
    """Measures of N answers to N questions."""

    pairs: tuple[QaRow, ...]
    results: tuple[ChatResult, ...]

    @property
    def closed(self) -> Floats:
        """(N,) whether a closed answer is right."""
        return self._each(lambda pair, said: _is_right(pair, said) if pair.is_closed else None)

    @property
    def lean(self) -> Floats:
        """(N,) whether the likelier of yes and no is right."""
        return self._each(lambda pair, said: _leans_right(pair, said) if pair.is_closed and pair.is_yes_no else None)

    @property
    def exact(self) -> Floats:
        return self._each(lambda pair, said: said.words == pair.truth if not pair.is_closed else None)

    @property
    def token_f1(self) -> Floats:
        return self._each(lambda pair, said: _token_f1(pair.truth, said.words) if not pair.is_closed else None)

    @property
    def declined(self) -> Floats:
        """(N,) whether the answer is that it cannot be told."""
        return self._each(lambda pair, said: said.says == "cannot tell")

    def _each(self, measure: Callable[[QaRow, ChatResult], float | None]) -> Floats:
        values = [measure(pair, said) for pair, said in zip(self.pairs, self.results, strict=True)]
        return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def majority(pairs: Sequence[QaRow], learnt: Sequence[QaRow]) -> tuple[ChatResult, ...]:
    """To each question the commonest closed answer to that kind in `learnt`, or of all kinds where there is none."""
    by_kind: dict[str, Counter[str]] = {}
    everything: Counter[str] = Counter()
    for pair in learnt:
        if pair.is_closed:
            by_kind.setdefault(pair.kind, Counter())[pair.truth] += 1
            everything[pair.truth] += 1
    common = {kind: counted.most_common(1)[0][0] for kind, counted in by_kind.items()}
    otherwise = everything.most_common(1)[0][0] if everything else ""
    return tuple(ChatResult(common.get(pair.kind, otherwise)) for pair in pairs)


def patients(pairs: Sequence[QaRow]) -> list[str]:
    return [pair.film.patient_id for pair in pairs]


def kinds_of(pairs: Sequence[QaRow], min_count: int) -> dict[str, npt.NDArray[np.bool_]]:
    """ "all", then each kind of question with `min_count` questions, the commonest first: which questions are of it."""
    counted = Counter(pair.kind for pair in pairs)
    kinds = {"all": np.ones(len(pairs), dtype=bool)}
    return kinds | {
        kind: np.array([pair.kind == kind for pair in pairs]) for kind, count in counted.most_common() if count >= min_count
    }


def _is_right(pair: QaRow, said: ChatResult) -> bool:
    return said.says == pair.truth if pair.is_yes_no else said.words == pair.truth


def _leans_right(pair: QaRow, said: ChatResult) -> bool:
    if said.yes_probability is None:
        return said.says == pair.truth
    return (said.yes_probability > 0.5) is (pair.truth == "yes")


def _token_f1(truth: str, said: str) -> float:
    """SQuAD's: articles and punctuation do not count."""
    target: Any = {"answers": {"answer_start": [0], "text": [truth]}, "id": "0"}
    return float(squad([{"prediction_text": said, "id": "0"}], [target])["f1"]) / 100
