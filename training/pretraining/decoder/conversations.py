"""Conversations about a film, written from what is stated of it: the decoder's training text.

A question is drawn (`asked.py`); `interpret_question` says what it asks, exactly as it will when serving; the answer
(`answers.py`) follows from the stated findings alone (`facts.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from foundation.prompt import Turn
from foundation.questions import interpret_question
from training.pretraining.decoder.answers import answer
from training.pretraining.decoder.asked import FOLLOW_UPS, question
from training.pretraining.decoder.facts import FilmFacts


def conversation(rng: random.Random, facts: FilmFacts, turns: int, extra: Sequence[str] = ()) -> tuple[tuple[Turn, Turn], ...]:
    """`turns` questions with their true answers; some questions lean on the one before."""
    asked: list[str] = []
    pairs = []
    for _ in range(turns):
        follows = asked and interpret_question(asked[-1], asked[:-1]).findings and rng.random() < 0.25
        text = rng.choice(FOLLOW_UPS) if follows else question(rng, facts, extra)
        pairs.append((Turn("user", text), Turn("assistant", answer(text, asked, facts))))
        asked.append(text)
    return tuple(pairs)
