"""How sure an answer may sound: the decoder's "there is" becomes as strong as the finding's probability allows.

    probability   from 0.85   from 0.5   from 0.15   below           a threshold may be as low as a few per cent
    it is called  as it is    probable   possible    doubtful

    There is a pleural effusion (16%).   ->   There is a possible pleural effusion (16%, above its threshold of 8%).
    Several in one sentence              ->   possible infiltration (32%, threshold 20%), doubtful consolidation (6%, ...

Percentages, places, yes and no stay as the decoder wrote them. It was taught plain words, so `plain_words` takes the
graded ones out of an answer that comes back as part of a conversation. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from foundation.lexicon import NOUNS

if TYPE_CHECKING:
    from serving.evidence import Finding

GRADES = ((0.85, ""), (0.5, "probable"), (0.15, "possible"), (0.0, "doubtful"))
ADVERBS = {"probable": "probably", "possible": "possibly", "doubtful": "doubtfully"}
NEAR = 0.75  # of its threshold: an absence that close to it is not a plain one
_GIVEN = r" \((?P<percent>\d+)%\)"
_WORDS, _ADVERBS = "|".join(ADVERBS), "|".join(ADVERBS.values())
_PLAIN: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf": yes, (?:{_WORDS}) \("), ": yes ("),
    (re.compile(rf"\b(?:{_ADVERBS}) present\b"), "present"),
    (re.compile(rf"\b(?:{_WORDS}) "), ""),
    (re.compile(r"%, (?:(?:just )?(?:above|below) its threshold(?: of [\d.]+%)?|threshold [\d.]+%)\)"), "%)"),
    (re.compile(r"\bmay not be normal: it"), "is not normal: it"),
)
_FIRST = re.compile(rf"\b(?:{_WORDS.title()}) (\w)")


def grade(probability: float) -> str:
    """What a present finding of this probability is called; "" where it needs no reserve."""
    return next(word for least, word in GRADES if probability >= least)


class Wording:
    """An answer's text by pieces, given on sentence by sentence once each is graded."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self._findings = {NOUNS.get(one.label, one.label): one for one in findings}
        self._held = ""
        self._last: Finding | None = None  # named last, which "it is present" is about

    def push(self, text: str) -> str:
        """The text that is certain after this piece."""
        if not self._findings:
            return text
        self._held += text
        return self.flush() if self._held.rstrip().endswith((".", "?", "!")) else ""

    def flush(self) -> str:
        """What is held back, as it is to be said."""
        held, self._held = self._held, ""
        return "".join(map(self._sentence, re.split(r"(?<=[.?!])(?= )", held)))

    def _sentence(self, sentence: str) -> str:
        names = list(_names(tuple(self._findings)).finditer(sentence))
        is_list = len(re.findall(_GIVEN, sentence)) > 1
        parts, end = [], 0
        for place, name in enumerate(names):
            after = names[place + 1].start() if place + 1 < len(names) else len(sentence)
            parts.append(sentence[end : name.start()])
            parts.append(self._clause(sentence[name.start() : after], name, sentence[: name.start()], is_list))
            end = after
        parts.append(self._pronoun(sentence[end:]))
        return _doubt_all("".join(parts))

    def _clause(self, clause: str, name: re.Match[str], before: str, is_list: bool) -> str:
        """A finding, up to the next: its name graded, its threshold beside its percentage."""
        self._last = finding = self._findings[name["noun"].lower()]
        given = re.search(_GIVEN, clause)
        is_denied = bool(re.search(r"\bno $", before)) or ": no (" in clause
        if given is None or is_denied == finding.is_present:
            return clause  # NOTE: also where the decoder contradicts what it was given: that is not to be made smoother
        clause = _beside(clause, given, finding, is_list) if _needs_threshold(finding) else clause
        if is_denied:
            return clause
        word = grade(finding.probability)
        if not word or ": yes (" in clause:
            return clause.replace(": yes (", f": yes, {word} (", 1) if word else clause
        article = name["article"] or ""
        rest = clause[len(article) :]
        if not article and rest[0].isupper():
            return f"{word.capitalize()} {rest[0].lower()}{rest[1:]}"
        return f"{article.replace('an ', 'a ').replace('An ', 'A ')}{word} {rest}"

    def _pronoun(self, text: str) -> str:
        """ "On this film it is present (16%)", said of the finding that the sentence before explained."""
        finding = self._last
        given = re.search(rf"\bit is (?P<said>present|absent){_GIVEN}", text)
        if finding is None or given is None or (given["said"] == "present") != finding.is_present:
            return text
        if _needs_threshold(finding):
            text = _beside(text, given, finding)
        word = grade(finding.probability) if finding.is_present else ""
        return text.replace("it is present", f"it is {ADVERBS[word]} present", 1) if word else text


def plain_words(text: str) -> str:
    """An answer as the decoder wrote it: without the words that `Wording` put in."""
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    return _FIRST.sub(lambda found: found[1].upper(), text)


def _needs_threshold(finding: Finding) -> bool:
    """A finding that is present though less likely than not, or absent though near to being present."""
    if finding.is_present:
        return finding.probability < GRADES[1][0]
    return finding.probability >= NEAR * finding.threshold


def threshold_words(percent: int, finding: Finding) -> str:
    """ "above its threshold of 8%"; without the number where rounding would seem to contradict it."""
    shown, side = threshold_percent(finding.threshold), "above" if finding.is_present else "below"
    near = "" if finding.is_present else "just "
    is_plain = float(shown) < percent if finding.is_present else float(shown) > percent
    return f"{near}{side} its threshold of {shown}%" if is_plain else f"just {side} its threshold"


def threshold_percent(threshold: float) -> str:
    """ "20", or "8.3" where it is small."""
    return f"{100 * threshold:.0f}" if threshold >= 0.1 else f"{100 * threshold:.1f}".removesuffix(".0")


def _beside(clause: str, given: re.Match[str], finding: Finding, is_list: bool = False) -> str:
    """The clause with the threshold within the brackets of its percentage, in few words in a list."""
    end = given.end() - 1
    words = threshold_words(int(given["percent"]), finding)
    return f"{clause[:end]}, {f'threshold {threshold_percent(finding.threshold)}%' if is_list else words}{clause[end:]}"


def _doubt_all(sentence: str) -> str:
    """A film none of whose findings is even probable may be normal."""
    is_likely = re.search(r"\bprobable\b", sentence) or not re.search(r"\b(possible|doubtful)\b", sentence)
    return sentence if is_likely else sentence.replace("is not normal: it", "may not be normal: it")


@cache
def _names(nouns: tuple[str, ...]) -> re.Pattern[str]:
    """A finding by its noun, with what belongs in front of it. The longest first."""
    words = "|".join(map(re.escape, sorted(nouns, key=lambda noun: -len(noun))))
    return re.compile(rf"(?P<article>\b(?:an?|the) )?(?:\b(?:mild|moderate|severe|small|large) )?\b(?P<noun>{words})\b", re.I)
