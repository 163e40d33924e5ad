"""The words of a finding: its noun, its size and side, and findings in a row."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.lexicon import NOUNS
from foundation.prompt import FindingState

COUNTED = frozenset({"effusion", "pneumothorax", "nodule", "mass", "hernia"})


def listed(states: Sequence[FindingState]) -> str:
    return join([f"{phrase(state)} {percent(state)}" for state in states], "and")


def join(parts: Sequence[str], word: str) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{' , '.join(parts[:-1])} {word} {parts[-1]}"


def percent(state: FindingState) -> str:
    return f"( {state.percent} % )"


def noun(name: str) -> str:
    return NOUNS.get(name, name)


def phrase(state: FindingState) -> str:
    """ "a small pleural effusion on the right", "consolidation in the left upper zone", "mild cardiomegaly"."""
    words = " ".join(word for word in (state.severity, noun(state.name)) if word)
    where = place(state)
    article = ("an " if words[0] in "aeiou" else "a ") if state.name in COUNTED and state.side != "bilateral" else ""
    return f"{article}{words} {where}".strip()


def place(state: FindingState) -> str:
    """ "in the right lower zone", "on the left", "in both lower zones", "on both sides", or "" if not known."""
    if state.zone and state.side == "bilateral":
        return f"in both {state.zone} zones"
    if state.zone and state.side:
        return f"in the {state.side} {state.zone} zone"
    if state.zone:
        return f"in the {state.zone} zone"
    if state.side == "bilateral":
        return "on both sides"
    return f"on the {state.side}" if state.side else ""
