"""Sentences for films that came with labels only, and the prompt pairs each pretraining target is asked with.

Wording comes from `foundation/lexicon.py`; what a target means from `datasets.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from foundation.lexicon import FINDINGS, NORMAL_PHRASES, OTHER_TERMS, SYNONYMS

VARIANTS = 6
_PRESENT = (
    "there is {}.",
    "{}.",
    "{} is seen.",
    "findings consistent with {}.",
    "the film shows {}.",
    "evidence of {}.",
)
_ABSENT = ("no {}.", "no evidence of {}.", "there is no {}.", "without {}.", "{} is not seen.")
_POSITIVE = (
    "{}",
    "there is {}",
    "evidence of {}",
    "chest film with {}",
    "the film shows {}",
    "findings consistent with {}",
)
_NEGATIVE = (
    "no {}",
    "there is no {}",
    "no evidence of {}",
    "chest film without {}",
    "the film shows no {}",
    "without {}",
)
_SIDED = ("{side} {term}", "{side}-sided {term}", "{term} on the {side}")
_WORDS = {
    **SYNONYMS,
    **OTHER_TERMS,
    "bacterial": OTHER_TERMS["bacterial pneumonia"],
    "child pneumonia": SYNONYMS["pneumonia"],
    "line": ("central venous line", "central venous catheter", "central line"),
    "tube": ("endotracheal tube", "breathing tube", "ett"),
}
_OPPOSITE = {"bacterial": OTHER_TERMS["viral pneumonia"]}

PromptPair = tuple[tuple[str, ...], tuple[str, ...]]


def label_sentences(labels: Iterable[str], seed: int, count: int = VARIANTS) -> tuple[str, ...]:
    """`count` reports that say these labels and deny a few others; the same labels and seed give the same sentences."""
    random = np.random.default_rng(seed)
    present = [name for name in labels if name in _WORDS]
    return tuple(_report(present, random) for _ in range(count))


def _report(present: Sequence[str], random: np.random.Generator) -> str:
    if not present:
        clauses = [str(random.choice(NORMAL_PHRASES)) + "."]
    else:
        order = [present[i] for i in random.permutation(len(present))]
        clauses = [str(random.choice(_PRESENT)).format(random.choice(_WORDS[name])) for name in order]
    absent = [name for name in FINDINGS if name not in present]
    denied = random.choice(absent, int(random.integers(0, 3)), replace=False)
    clauses += [str(random.choice(_ABSENT)).format(_WORDS[name][0]) for name in denied]
    return " ".join(clauses)


def target_prompts(target: str) -> PromptPair | None:
    """Positive and negative sentences of a target (see datasets.real_target_names); None if it has no words.

    `normal` has none: it is the absence of findings, never a prompt of its own.
    """
    name = target.removeprefix("phantom ")
    for side in ("left", "right"):
        if name.endswith(f" {side}"):
            return _sided(name.removesuffix(f" {side}"), side)
    if name not in _WORDS:
        return None
    positive = tuple(form.format(term) for term in _WORDS[name] for form in _POSITIVE)
    if name in _OPPOSITE:
        return positive, tuple(form.format(term) for term in _OPPOSITE[name] for form in _POSITIVE)
    return positive, tuple(form.format(term) for term in _WORDS[name] for form in _NEGATIVE)


def _sided(name: str, side: str) -> PromptPair | None:
    if name not in _WORDS:
        return None
    phrases = [form.format(side=side, term=term) for term in _WORDS[name][:4] for form in _SIDED]
    return (
        tuple(form.format(phrase) for phrase in phrases for form in _POSITIVE[:3]),
        tuple(form.format(phrase) for phrase in phrases for form in _NEGATIVE[:3]),
    )
