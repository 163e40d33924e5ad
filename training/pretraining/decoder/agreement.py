"""Does an answer say what was stated? Its yes or no, the findings it names, their percentages and places, one by one.

An answer may be worded in many ways; what must not differ is what it claims. Used by the decoder's examination
(`instruct.py`) and by the evaluation of a whole chat (`evaluating/chat_check.py`). Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from foundation.lexicon import FINDINGS, NOUNS
from foundation.prompt import FindingState, is_elsewhere
from foundation.questions import QuestionIntent, interpret_question
from training.pretraining.decoder.answers import MEANINGS

_ZONES = {"upper": "upper", "middle": "middle", "mid": "middle", "lower": "lower"}
_DENIED = r"\b(no|not|without)\b[^.:;]*$"


@dataclass(frozen=True)
class Mention:
    """A finding named in an answer: whether it is denied, and the percentage and place given with it, if any."""

    name: str
    is_denied: bool
    percent: int | None
    sides: frozenset[str]
    zones: frozenset[str]


@dataclass(frozen=True)
class Agreement:
    """What of an answer agrees with what is stated; None where the question does not ask for it."""

    kind: str
    verdict: bool | None = None  # the yes or no
    findings: bool | None = None  # names what it should, each once, and denies nothing that is present
    percents: bool | None = None  # every percentage given is the stated one, and none is missing
    places: bool | None = None  # sides and zones of every finding named as present

    @property
    def is_whole(self) -> bool:
        return False not in (self.verdict, self.findings, self.percents, self.places)


def agreement(question: str, earlier: Sequence[str], answer: str, stated: Sequence[FindingState]) -> Agreement | None:
    """None where the question is about no finding at all; `earlier` are the questions before it."""
    intent = interpret_question(question, earlier)
    known = {state.name: state for state in stated}
    if intent.term or not set(intent.findings) <= set(known):
        return Agreement("not assessed", findings="not assess" in answer.lower())
    if intent.kind == "other":
        return None
    wanted = [known[name] for name in intent.findings[:4]] or [state for state in stated if state.is_present]
    said = mentions(_without_meaning(answer))
    named = [mention for mention in said if mention.percent is not None]
    has_places = intent.kind in ("presence", "location", "normal", "describe") and len(intent.findings) < 2
    return Agreement(
        intent.kind,
        _verdict_agrees(intent, answer, wanted),
        sorted(mention.name for mention in named) == sorted(state.name for state in wanted)
        and all(known[one.name].is_present != one.is_denied for one in said if one.name in known),
        all(one.name in known and one.percent == known[one.name].percent for one in named),
        all(_place_agrees(one, known[one.name]) for one in named if one.name in known and not one.is_denied)
        if has_places
        else None,
    )


def expected_verdict(intent: QuestionIntent, wanted: Sequence[FindingState]) -> bool | None:
    """True for yes; None where the question is not a closed one. wanted: the findings it is about."""
    if intent.kind not in ("presence", "normal") or len(intent.findings) > 1:
        return None
    is_present = bool(wanted) and wanted[0].is_present and not is_elsewhere(intent.side, wanted[0].side)
    return is_present != intent.asks_absence


def mentions(answer: str) -> tuple[Mention, ...]:
    """The findings an answer names, in order; what follows a name up to the next belongs to it."""
    plain = answer.lower()
    hits = list(_names().finditer(plain))
    found = []
    for place, hit in enumerate(hits):
        after = hits[place + 1] if place + 1 < len(hits) else None
        rest = plain[hit.end() : after.start() if after else len(plain)]
        percent = re.search(r"(\d+)\s*%", rest)
        own = rest[: percent.end()] if percent else re.split(r"[.;]", rest)[0]
        is_denied = bool(re.search(_DENIED, plain[: hit.start()])) or bool(re.match(r"\s*:\s*no\b|.*\babsent\b", own))
        found.append(
            Mention(_name_of(hit.group()), is_denied, int(percent[1]) if percent else None, sides_in(own), zones_in(own))
        )
    return tuple(found)


def yes_or_no(text: str) -> bool | None:
    """What an answer says by its first word; None where it says neither."""
    first = re.match(r"\W*(yes|no)\b", text.lower())
    return None if first is None else first[1] == "yes"


def sides_in(text: str) -> frozenset[str]:
    words = set(re.findall(r"[a-z]+", text.lower()))
    if words & {"bilateral", "bilaterally", "both"}:
        return frozenset({"left", "right"})
    return frozenset(words & {"left", "right"})


def zones_in(text: str) -> frozenset[str]:
    return frozenset(_ZONES[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _ZONES)


def _verdict_agrees(intent: QuestionIntent, answer: str, wanted: Sequence[FindingState]) -> bool | None:
    expected = expected_verdict(intent, wanted)
    return None if expected is None else yes_or_no(answer) is expected


def _place_agrees(said: Mention, state: FindingState) -> bool:
    if state.name == "cardiomegaly":
        return True  # "in the middle of the chest" is no zone
    sides = ("left", "right") if state.side == "bilateral" else (state.side,)
    return said.sides == _told(*sides) and said.zones == _told(state.zone)


def _told(*words: str | None) -> frozenset[str]:
    return frozenset(word for word in words if word)


def _without_meaning(answer: str) -> str:
    """An answer that first explains a word: what it says of this film."""
    start = answer.lower().replace(" ,", ",").replace(" .", ".")
    texts = [text.replace(" ,", ",") for text in MEANINGS.values()]
    explained = next((text for text in texts if start.startswith(text)), "")
    if not explained:
        return answer
    name = next(name for name, text in MEANINGS.items() if text.replace(" ,", ",") == explained)
    return name + start[len(explained) :]


@cache
def _names() -> re.Pattern[str]:
    words = sorted({*FINDINGS, *NOUNS.values()}, key=lambda word: -len(word))
    return re.compile(rf"\b({'|'.join(map(re.escape, words))})\b")


def _name_of(word: str) -> str:
    return next((name for name, noun in NOUNS.items() if noun == word), word)
