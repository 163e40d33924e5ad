"""Lessons: conversations about films as token ids, with the answers marked that are to be learned."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foundation.decoder import Decoder
from foundation.prompt import Turn, findings_text
from training.pretraining.decoder.conversations import conversation
from training.pretraining.decoder.facts import FilmFacts
from training.pretraining.decoder.film_bank import FilmBank
from training.pretraining.decoder.recipe import DecoderRecipe


@dataclass(frozen=True, eq=False)
class Lesson:
    """Sequences ready for the model: ids (B, T), where answers are to be learned (B, T), patch tokens (B, N, D)."""

    ids: Tensor
    is_answer: Tensor
    tokens: Tensor


def write_lesson(decoder: Decoder, bank: FilmBank, recipe: DecoderRecipe, step: int, questions: Sequence[str] = ()) -> Lesson:
    """The conversations of one step; the same step is always the same lesson."""
    rng = random.Random(recipe.seed * 1_000_003 + step)
    dialogues = []
    for _ in range(recipe.batch):
        row = rng.randrange(len(bank))
        facts = bank.facts(row, rng)
        dialogues.append((row, facts, conversation(rng, facts, recipe.turns, questions)))
    return lesson_of(decoder, bank, dialogues, recipe.length)


Dialogue = tuple[int, FilmFacts, Sequence[tuple[Turn, Turn]]]
"""The film's place in the bank, what is stated of it, and questions with their answers."""


def lesson_of(decoder: Decoder, bank: FilmBank, dialogues: Sequence[Dialogue], length: int | None = None) -> Lesson:
    """Tokenise dialogues about films of the bank, padded to the longest.

    Each ends before the turn that would make it longer than `length` words and marks, so that little of a batch is padding.
    """
    image_tokens = bank.tokens.shape[1]
    rows = [_sequence(decoder, facts, pairs, image_tokens, length) for _, facts, pairs in dialogues]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), decoder.tokenizer.special_ids["[PAD]"])
    is_answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (tokens, answers) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_answer[row, : len(tokens)] = torch.tensor(answers)
    return Lesson(ids, is_answer, bank.tokens[[index for index, _, _ in dialogues]])


def _sequence(
    decoder: Decoder, facts: FilmFacts, pairs: Sequence[tuple[Turn, Turn]], image_tokens: int, length: int | None
) -> tuple[list[int], list[bool]]:
    """(ids, which of them are answers): the prompt the server would build before the last answer, then that answer."""
    with_hints = sum(len(asked.text) for asked, _ in pairs) % 7 != 0  # one dialogue in seven goes without
    *earlier, (asked, answered) = pairs
    turns = [turn for pair in earlier for turn in pair] + [asked]
    ids = decoder.tokenizer.prompt(turns, findings_text(facts.stated), image_tokens, with_hints=with_hints)
    ids += [*decoder.tokenizer.encode_plain(answered.text), decoder.end_id]
    ends = [place + 1 for place, token in enumerate(ids) if token == decoder.end_id]
    fitting = [end for end in ends if length is None or end <= length + image_tokens]
    ids = ids[: max(fitting, default=ends[0])]
    return ids, _are_answers(decoder, ids)


def _are_answers(decoder: Decoder, ids: Sequence[int]) -> list[bool]:
    """True behind each <assistant> up to its [EOS]: what people say never holds either mark."""
    begin, is_answer, inside = decoder.tokenizer.special_ids["<assistant>"], [], False
    for token in ids:
        is_answer.append(inside)
        inside = token == begin or (inside and token != decoder.end_id)
    return is_answer


def answer_logits(decoder: Decoder, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """(logits (A, V), target ids (A,)) of all answer tokens of the lesson, row by row."""
    ids, is_answer = lesson.ids.to(decoder.device), lesson.is_answer.to(decoder.device)
    embedded = decoder.model.get_input_embeddings()(ids)
    is_image = ids == decoder.image_id
    projected = decoder.projector(lesson.tokens.to(decoder.device).float())
    embedded = embedded.masked_scatter(is_image[..., None], projected.to(embedded.dtype))
    hidden = decoder.model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    said = is_answer[:, 1:]
    return decoder.model.lm_head(hidden[:, :-1][said]), ids[:, 1:][said]
