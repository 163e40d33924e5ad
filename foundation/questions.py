"""What a question about a film asks for: which findings, and whether it is presence, place, size or a description.

A plain match over the words of `lexicon.py`, tolerant of plurals, British spelling and small typing errors. Serving takes
its evidence from the intent; the decoder gets it as a hint beside the question's own words. Knows no model.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Literal

from foundation.lexicon import FINDINGS, OTHER_TERMS, SIDE_WORDS, SYNONYMS

_WITHOUT_MARKS = str.maketrans({mark: " " for mark in string.punctuation})
Kind = Literal["presence", "location", "severity", "normal", "describe", "meaning", "other"]

_MORE_WORDS: dict[str, tuple[str, ...]] = {
    "atelectasis": ("atelectatic", "collapse of the lung", "collapsed segment", "collapsed lobe"),
    "cardiomegaly": (
        "heart",
        "heart size",
        "size of the heart",
        "cardiac silhouette",
        "cardiac size",
        "cardiac shadow",
        "cardiothoracic ratio",
        "large heart",
    ),
    "consolidation": ("consolidated", "airspace"),
    "edema": ("congestion", "congested", "edematous", "fluid overload", "heart failure", "wet lungs"),
    "effusion": ("pleural effusions", "costophrenic", "fluid", "hemothorax", "pleural collection", "pleuritic fluid"),
    "emphysema": ("emphysematous", "copd", "hyperinflated", "hyperexpanded", "bulla", "bullae", "overinflation"),
    "fibrosis": ("fibrotic", "scarred", "scar", "interstitial lung disease"),
    "hernia": ("hernias",),
    "infiltration": ("infiltrates", "infiltrative", "haziness", "hazy", "patchy"),
    "mass": ("cancer", "malignancy", "neoplasm", "tumors", "carcinoma", "growth"),
    "nodule": ("nodular", "small round opacity", "spot on the lung", "granuloma"),
    "pleural thickening": ("pleura thickened", "thick pleura", "pleural plaque"),
    "pneumonia": ("pneumonic", "infection", "infected", "infectious"),
    "pneumothorax": ("pneumothoraces", "air leak", "air outside the lung"),
}
_MORE_OTHER: dict[str, tuple[str, ...]] = {
    "tube": ("endotracheal", "catheter", "lines", "device", "devices", "intubated", "picc", "nasogastric"),
    "fracture": ("broken ribs", "fractured", "ribs broken"),
    "covid-19": ("covid", "coronavirus"),
    "tuberculosis": ("tuberculous", "cavity", "cavitation"),
    "mediastinal widening": ("mediastinum",),
}
_LOCATION = (
    r"\bwhere\b|\b(which|what) (side|lung|lobe|zone|part|region|area)|\blocat|\blaterality|\bposition of|"
    r"\b(left or right|right or left)\b|\bon which\b|\bin which\b"
)
_SEVERITY = (
    r"\bhow (large|big|small|severe|bad|much|extensive|advanced|serious|marked|wide)|\bsever(e|ity)\b.*\?|\bwhat size|"
    r"\bsize of (the|this|that) (?!heart|cardiac)|\bextent of|\bhow would you grade|\bgrade (the|of)|\bmild or|\bsmall or large"
)
_MEANING = r"\bwhat (does|do) .*\bmeans?\b|\bdefine\b|\bmeaning of\b|\bexplain\b"
_NORMAL = (
    r"\bnormal\b|\bhealthy\b|\babnormal(ity|ities)?\b|\banything (wrong|unusual|concerning|to worry)|"
    r"\bany (problem|issue|patholog|disease|finding)|\b(lungs?|chest|film) (are |is |look |looks )?(clear|ok|okay|fine)|"
    r"\bare the lungs clear|\b(is|are) .*\b(ok|okay|fine|clear)\b|"
    r"\bunremarkable\b|\bis everything\b|\bshould i (worry|be worried)"
)
_DESCRIBE = (
    r"\bdescri(be|ption)|\bwhat (do|can|did) you see|\breport\b|\binterpret|\bsummar|\bimpression|"
    r"\bwhat (does|do) .*\bshow|\bwhat('s| is) (wrong|going on|visible|seen|shown|this|in (the|this))|\bdiagnos|"
    r"\btell me about|\bfindings\b|\bread (this|the)|\bwhat are the|\bcaption\b|\bwhat abnormalit|\bwhat patholog|"
    r"\bwhat is the (main|major|primary|most)|\blist\b|\bwhat (is|are) (seen|visible|shown)"
)
_EITHER = r"\bnormal or (abnormal|not)\b|\babnormal or normal\b"
_WELL = r"\b(normal|healthy|unremarkable|clear|ok|okay|fine)\b|\bis everything\b"  # NOTE: "abnormal" has no such word in it
_ABSENCE = (
    r"(?<!than )\bnormal\b|\bfree of\b|\bclear of\b|\bis there no\b|\bare there no\b|\bwithout\b|\bruled? out\b|"
    r"\babsen(t|ce)\b|\bexclude"
)


_Patterns = tuple[tuple[str, str, re.Pattern[str]], ...]  # name, what is in every text it matches, the pattern


@dataclass(frozen=True)
class QuestionIntent:
    """What is asked. `findings` are names of `lexicon.FINDINGS` in order of mention; `term` is something we do not assess.

    asks_absence: "is the heart normal?", "is it free of effusion?"; a yes then means that the finding is absent. Of the whole
    film ("normal"): "is it normal?", where "is anything wrong?" asks for presence.
    """

    kind: Kind
    findings: tuple[str, ...] = ()
    side: str | None = None
    term: str | None = None
    asks_absence: bool = False

    @property
    def finding(self) -> str | None:
        return self.findings[0] if self.findings else None


def plain_words(text: str) -> str:
    """Lower case, without punctuation, single spaces: how answers are compared."""
    return " ".join(text.lower().translate(_WITHOUT_MARKS).split())


def interpret_question(text: str, earlier: Sequence[str] = ()) -> QuestionIntent:
    """The intent of a question; `earlier` are the previous user turns, oldest first, for "where is it?"."""
    intent = _interpret(text)
    if intent.findings or intent.term or intent.kind not in ("location", "severity", "other") or not _refers_back(text, intent):
        return intent
    for previous in reversed(earlier):
        before = _interpret(previous)
        if before.findings:
            kind: Kind = "presence" if intent.kind == "other" else intent.kind
            return replace(intent, kind=kind, findings=before.findings[:1])
    return intent


def _refers_back(text: str, intent: QuestionIntent) -> bool:
    if intent.kind in ("location", "severity"):
        return True
    return bool(re.search(r"\b(it|that|this one|sure|certain|same)\b", text.lower())) and len(text.split()) <= 6


def _interpret(text: str) -> QuestionIntent:
    plain = _normalise(text)
    findings, rest = _match(plain, _finding_patterns())
    others, _ = _match(rest, _other_patterns())
    if not findings and not others:
        corrected = _correct_spelling(plain)
        if corrected != plain:
            findings, rest = _match(corrected, _finding_patterns())
            others, _ = _match(rest, _other_patterns())
            plain = corrected
    term = others[0] if others and not findings else None
    side = next((side for side, words in SIDE_WORDS.items() if any(_has_word(plain, w) for w in words)), None)
    kind = _kind(plain, bool(findings or term), rest)
    asks_absence = kind == "presence" and bool(findings) and bool(re.search(_ABSENCE, plain))
    asks_absence |= kind == "normal" and bool(re.search(_WELL, plain))
    return QuestionIntent(kind, tuple(findings), side, term, asks_absence)


def _kind(plain: str, has_subject: bool, rest: str) -> Kind:
    if has_subject and (re.search(_MEANING, plain) or _is_definition(rest)):
        return "meaning"
    if re.search(_LOCATION, plain):
        return "location"
    if re.search(_SEVERITY, plain):
        return "severity"
    if has_subject:
        return "presence"
    if re.search(_DESCRIBE, plain) or re.search(_EITHER, plain):
        return "describe"
    if re.search(_NORMAL, plain):
        return "normal"
    return "other"


def _is_definition(rest: str) -> bool:
    """ "what is an effusion?": nothing is left but the question words."""
    return bool(re.fullmatch(r"what( is|'s|s| are) ?(a|an)? ?\W*", rest.strip()))


def _normalise(text: str) -> str:
    plain = text.lower().replace("oedema", "edema").replace("haemo", "hemo").replace("’", "'")
    plain = re.sub(r"\bis/are\b", "is", plain)
    return re.sub(r"\s+", " ", plain).strip()


def _has_word(plain: str, word: str) -> bool:
    return bool(re.search(rf"\b{re.escape(word)}\b", plain))


def _match(plain: str, patterns: _Patterns) -> tuple[list[str], str]:
    """(names in order of mention, the text with what was recognised taken out); longer phrases win."""
    found: list[tuple[int, str]] = []
    rest = plain
    for name, phrase, pattern in patterns:
        if phrase not in rest:
            continue  # most are not, and this is told much faster than by the pattern
        for hit in pattern.finditer(rest):
            found.append((hit.start(), name))
        rest = pattern.sub(lambda hit: " " * len(hit.group()), rest)
    return list(dict.fromkeys(name for _, name in sorted(found))), rest


@cache
def _finding_patterns() -> _Patterns:
    return _patterns({name: (name, *SYNONYMS[name], *_MORE_WORDS[name]) for name in FINDINGS})


@cache
def _other_patterns() -> _Patterns:
    return _patterns({name: (name, *words, *_MORE_OTHER.get(name, ())) for name, words in OTHER_TERMS.items()})


def _patterns(words: dict[str, tuple[str, ...]]) -> _Patterns:
    """Longest phrases first. A word of OTHER_TERMS that holds a finding's word ("viral pneumonia") counts as the finding."""
    phrases = {_normalise(phrase): name for name, group in words.items() for phrase in group}
    ordered = sorted(phrases.items(), key=lambda item: -len(item[0]))
    return tuple((name, phrase, re.compile(rf"\b{re.escape(phrase)}(s|es)?\b")) for phrase, name in ordered)


@cache
def _long_words() -> tuple[str, ...]:
    groups = (*SYNONYMS.values(), *_MORE_WORDS.values(), *OTHER_TERMS.values())
    return tuple(sorted({w for group in groups for phrase in group for w in re.findall(r"[a-z]{6,}", phrase)}))


def _correct_spelling(plain: str) -> str:
    """Long words within a small edit of a word we know are replaced by it: "pnuemothorax", "efusion"."""

    def corrected(hit: re.Match[str]) -> str:
        word = hit.group()
        near = get_close_matches(word, _long_words(), n=1, cutoff=0.84)
        return near[0] if near else word

    return re.sub(r"[a-z]{6,}", corrected, plain)
