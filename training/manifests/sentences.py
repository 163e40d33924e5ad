"""Sentences for films that came with labels only, and the prompt pairs each pretraining target is asked with.

Words and forms are those of `foundation/lexicon.py` and `foundation/prompts.py`; what a target means, `datasets.py` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from foundation.lexicon import FINDINGS, NORMAL_PHRASES
from foundation.prompts import NEGATIVE_TEMPLATES, OPPOSITES, POSITIVE_TEMPLATES, TERMS, fill, sided_phrases

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
_NAMES = {"bacterial": "bacterial pneumonia", "child pneumonia": "pneumonia"}  # targets that are findings by another name

SidePair = tuple[tuple[str, ...], tuple[str, ...]]


def label_sentences(labels: Iterable[str], seed: int, count: int = VARIANTS) -> tuple[str, ...]:
    """`count` reports that say these labels and deny a few others; the same labels and seed give the same sentences."""
    random = np.random.default_rng(seed)
    present = [name for name in labels if _finding(name) in TERMS]
    return tuple(_report(present, random) for _ in range(count))


def _report(present: Sequence[str], random: np.random.Generator) -> str:
    if not present:
        clauses = [str(random.choice(NORMAL_PHRASES)) + "."]
    else:
        order = [present[i] for i in random.permutation(len(present))]
        clauses = [str(random.choice(_PRESENT)).format(random.choice(TERMS[_finding(name)])) for name in order]
    absent = [name for name in FINDINGS if name not in present]
    denied = random.choice(absent, int(random.integers(0, 3)), replace=False)
    clauses += [str(random.choice(_ABSENT)).format(TERMS[name][0]) for name in denied]
    return " ".join(clauses)


def target_prompts(target: str) -> SidePair | None:
    """Positive and negative sentences of a target (see datasets.real_target_names); None if it has no words.

    `normal` has none: it is the absence of findings, never a prompt of its own.
    """
    name = target.removeprefix("phantom ")
    for side in ("left", "right"):
        if name.endswith(f" {side}"):
            return _sided(_finding(name.removesuffix(f" {side}")), side)
    finding = _finding(name)
    if finding not in TERMS:
        return None
    positive = fill(POSITIVE_TEMPLATES, TERMS[finding])
    if finding in OPPOSITES:
        return positive, fill(POSITIVE_TEMPLATES, TERMS[OPPOSITES[finding]])
    return positive, fill(NEGATIVE_TEMPLATES, TERMS[finding])


def _sided(finding: str, side: str) -> SidePair | None:
    if finding not in TERMS:
        return None
    phrases = sided_phrases(finding, side)
    return fill(POSITIVE_TEMPLATES[:3], phrases), fill(NEGATIVE_TEMPLATES[:3], phrases)


def _finding(name: str) -> str:
    return _NAMES.get(name, name)
