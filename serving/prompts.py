"""The sentences that labels and findings are asked with when nobody gives their own."""

from __future__ import annotations

from foundation.lexicon import FINDINGS
from foundation.prompts import NEGATIVE_TEMPLATES, POSITIVE_TEMPLATES, terms

TEMPLATES = ("{}", "there is {}", "chest film with {}", "the film shows {}")
"""What a label is put into by default; each also takes a label that begins with "no"."""

SCORED_FINDINGS = tuple(name for name in FINDINGS if name != "hernia")  # too rare to be scored


def finding_prompts(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sentences that say the finding is there, sentences that say it is not), under its first name only."""
    term = terms(name)[0]
    return (
        tuple(form.format(term) for form in POSITIVE_TEMPLATES),
        tuple(form.format(term) for form in NEGATIVE_TEMPLATES),
    )
