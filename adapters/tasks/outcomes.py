"""Sentences of a clinical note that state the outcome are removed before the note is an input.

The rule, in training and in serving alike:

1. A note is cut into sentences at full stops, exclamation and question marks, semicolons and line breaks.
   A full stop inside a number ("38.5") or after an abbreviation ("Dr.") cuts nothing.
2. A sentence is removed whole where it holds any word of STATED: death, survival, intensive care, intubation and
   ventilation, organ support outside the body, moves between wards, discharge and recovery, each with its inflections. Denials
   ("was not intubated") state an outcome as well, and go too. So do a discharge from a wound and the like: losing a
   harmless sentence costs less than keeping a telling one.
3. Nothing else is altered. A note of which nothing is left counts as absent.

What the rule cannot see is an outcome told without these words ("needed a central line", "the symptoms improved").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STATED: tuple[str, ...] = (
    # death and survival
    r"die[sd]?",
    r"dying",
    r"deaths?",
    r"dead",
    r"deceased",
    r"decease",
    r"demise",
    r"expired",
    r"passed away",
    r"succumb\w*",
    r"mortality",
    r"post-?mortem",
    r"autops\w+",
    r"fatal\w*",
    r"lethal\w*",
    r"surviv\w+",
    # intensive care
    r"icus?",
    r"i\.c\.u",
    r"itu",
    r"picu",
    r"micu",
    r"intensive[- ]care",
    r"intensive therapy",
    r"critical[- ]care",
    r"intermediate care",
    r"high[- ]dependency",
    r"critically",
    r"resuscitat\w*",
    r"cardiac arrest",
    r"life[- ]support",
    r"transfer\w*\s+(?:back\s+)?to",
    # airway and ventilation
    r"intubat\w*",
    r"extubat\w*",
    r"reintubat\w*",
    r"ventilat(?:ed|or|ors|ory)",
    r"(?:mechanical|invasive|assisted|protective|artificial)\s+(?:\w+\s+)?ventilation",
    r"on ventilation",
    r"positive[- ]pressure",
    r"niv",
    r"cpap",
    r"bi-?pap",
    r"crrt",
    r"endotracheal",
    r"endo-tracheal",
    r"orotracheal",
    r"tracheostom\w*",
    r"tracheotom\w*",
    r"ett",
    r"ecmo",
    r"extracorporeal",
    r"proned",
    r"prone position\w*",
    # leaving hospital and getting well
    r"discharg\w*",
    r"recover\w*",
    r"released from",
    r"went home",
    r"sent home",
    r"cured",
    r"outcomes?",
)

_STATED = re.compile(rf"(?<!\w)(?:{'|'.join(STATED)})(?!\w)", re.IGNORECASE)
_ABBREVIATION = re.compile(
    r"(?:\b(?:dr|mr|mrs|ms|prof|st|vs|fig|no|approx|e\.g|i\.e|cf|resp|temp)|\b[A-Za-z])\.$", re.IGNORECASE
)
_END = re.compile(r"[.!?]+(?=\s|$)|;|\n+")


@dataclass(frozen=True)
class CleanNote:
    """text: what is left, empty where nothing is; removed: the sentences that stated an outcome, in their order."""

    text: str
    removed: tuple[str, ...] = ()


def remove_outcomes(note: str) -> CleanNote:
    """The note without the sentences that state an outcome (the rule stands at the top of this file)."""
    kept: list[str] = []
    removed: list[str] = []
    for sentence in sentences(note):
        (removed if _STATED.search(sentence) else kept).append(sentence)
    return CleanNote(" ".join(kept), tuple(removed))


def sentences(note: str) -> list[str]:
    """The sentences of a note, each with its final mark, without surrounding space; empty ones are left out."""
    found: list[str] = []
    start = 0
    for match in _END.finditer(note):
        if match[0] == "." and _ABBREVIATION.search(note[start : match.end()]):
            continue
        found.append(note[start : match.end()])
        start = match.end()
    found.append(note[start:])
    return [text for sentence in found if (text := sentence.strip()).strip(".!?; ")]
