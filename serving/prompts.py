"""The sentences that findings are asked with when nobody gives their own: pairs of "there is" and "there is no".

"Normal" has no sentence: it is the absence of findings.
"""

from __future__ import annotations

from foundation.lexicon import FINDINGS, SYNONYMS

TEMPLATES = ("{}", "there is {}", "chest film with {}", "the film shows {}")
"""What a label is put into by default; each also takes a label that begins with "no"."""

PRESENT = (
    "{}",
    "there is {}",
    "evidence of {}",
    "chest film with {}",
    "the film shows {}",
    "findings consistent with {}",
)
ABSENT = ("no {}", "there is no {}", "no evidence of {}", "chest film without {}", "the film shows no {}", "without {}")
SCORED_FINDINGS = tuple(name for name in FINDINGS if name != "hernia")  # too rare to be scored


def finding_prompts(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sentences that say the finding is there, sentences that say it is not)."""
    term = SYNONYMS[name][0] if name in SYNONYMS else name
    return tuple(form.format(term) for form in PRESENT), tuple(form.format(term) for form in ABSENT)
