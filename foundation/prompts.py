"""How a finding is asked of an image-text model: sentences that say it is there, and sentences that say it is not.

    prompt_pair("effusion").positive     "pleural effusion", "there is pleural effusion", ...
    prompt_pair("effusion").negative     "no pleural effusion", "there is no pleural effusion", ...

The score of a finding is the difference between a film's similarity to the mean of either side, so a sentence's length
and tone cancel out. "Normal" has no pair: it is the absence of findings. Words come from `lexicon.py`; no torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foundation.errors import InvalidRequest
from foundation.lexicon import FINDINGS, NORMAL_PHRASES, OTHER_TERMS, SYNONYMS

POSITIVE_TEMPLATES = (
    "{}",
    "there is {}",
    "evidence of {}",
    "chest film with {}",
    "the film shows {}",
    "findings consistent with {}",
)
NEGATIVE_TEMPLATES = (
    "no {}",
    "there is no {}",
    "no evidence of {}",
    "chest film without {}",
    "the film shows no {}",
    "without {}",
)
SIDED_TEMPLATES = ("{side} {term}", "{side}-sided {term}", "{term} on the {side}")
SYNONYMS_USED = 4  # the first ones are how reports say it; the later ones are how laymen do

NORMAL = "normal"
NIH_FINDINGS = FINDINGS  # the fourteen of ChestX-ray14, in lower case
PHANTOM_TERMS: dict[str, tuple[str, ...]] = {
    "tube": ("endotracheal tube", "breathing tube", "ett"),
    "line": ("central venous line", "central venous catheter", "central line"),
}
OPPOSITES = {"bacterial pneumonia": "viral pneumonia", "viral pneumonia": "bacterial pneumonia"}
TERMS = {**SYNONYMS, **OTHER_TERMS, **PHANTOM_TERMS}
_NORMAL_WORDS = frozenset({NORMAL, "no finding", *NORMAL_PHRASES})


@dataclass(frozen=True)
class PromptPair:
    """The sentences of one question. `against` names the label that the negative side affirms, if it is one."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    against: str = ""


def is_known(name: str) -> bool:
    """Whether the name is a finding with words of its own here."""
    return name in TERMS


def is_normal(name: str) -> bool:
    """Whether the name means the absence of findings."""
    return name.strip().lower() in _NORMAL_WORDS


def terms(name: str) -> tuple[str, ...]:
    """How reports say it; a name not known here speaks for itself."""
    if is_normal(name):
        raise InvalidRequest(
            f"{name!r} is the absence of findings and has no prompt: ask for findings and derive it from them.",
            param="labels",
        )
    return TERMS.get(name, (name,))[:SYNONYMS_USED]


def prompt_pair(
    name: str,
    positive: Sequence[str] = POSITIVE_TEMPLATES,
    negative: Sequence[str] = NEGATIVE_TEMPLATES,
) -> PromptPair:
    """The pair of a finding, known or not. Raises InvalidRequest for "normal"."""
    words = terms(name)
    affirmed = fill(positive, words)
    if name in OPPOSITES:
        return PromptPair(name, affirmed, fill(positive, terms(OPPOSITES[name])), OPPOSITES[name])
    return PromptPair(name, affirmed, fill(negative, words))


def sided_pair(name: str) -> PromptPair:
    """The finding on the patient's left against the same on the right."""
    forms = POSITIVE_TEMPLATES[:3]
    left, right = (fill(forms, sided_phrases(name, side)) for side in ("left", "right"))
    return PromptPair(f"left {name}", left, right, f"right {name}")


def sided_phrases(name: str, side: str) -> tuple[str, ...]:
    """ "left pleural effusion", "pleural effusion on the left", ..."""
    return tuple(form.format(side=side, term=term) for term in terms(name) for form in SIDED_TEMPLATES)


def fill(templates: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """Every word in every template, word by word."""
    return tuple(template.format(word) for word in words for template in templates)
