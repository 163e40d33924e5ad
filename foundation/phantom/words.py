"""The words of a phantom: a radiologist's report and questions with answers, a pure function of seed and findings.

Every sentence is true of the film: what is present is said with side, zone and severity, and only what is absent
is denied. Knows nothing of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foundation.phantom.findings import FINDINGS, RULES, PhantomFinding

QuestionKind = Literal["closed", "location", "severity", "open"]
_REPORT_WORDS, _QUESTION_WORDS = 101, 102

_NOUNS: dict[str, tuple[str, ...]] = {  # the first is the plain one, used in questions and answers
    "effusion": ("pleural effusion", "pleural fluid collection", "effusion"),
    "pneumothorax": ("pneumothorax",),
    "nodule": ("pulmonary nodule", "lung nodule", "nodule"),
    "mass": ("lung mass", "pulmonary mass", "mass"),
    "consolidation": ("consolidation", "airspace consolidation", "airspace opacity"),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement", "enlargement of the cardiac silhouette"),
    "edema": ("pulmonary edema", "interstitial and perihilar edema"),
    "atelectasis": ("atelectasis",),
    "tube": ("endotracheal tube", "tracheal tube"),
    "line": ("central venous line", "central venous catheter", "central line"),
}
_GRADES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "effusion": (("small",), ("moderate", "moderate-sized"), ("large",)),
    "pneumothorax": (("small",), ("moderate", "moderate-sized"), ("large",)),
    "nodule": (("small",), ("moderate-sized", "medium-sized"), ("large",)),
    "mass": (("small",), ("moderate-sized",), ("large",)),
    "consolidation": (("small", "small patchy"), ("moderate",), ("large", "extensive")),
    "cardiomegaly": (("mild",), ("moderate",), ("severe", "marked")),
    "edema": (("mild",), ("moderate",), ("severe",)),
    "atelectasis": (("mild", "minor plate-like"), ("moderate", "band-like"), ("extensive", "marked")),
}
_UNCOUNTED = ("cardiomegaly", "consolidation", "edema", "atelectasis")
_ORGANS = {"effusion": "pleural space", "pneumothorax": "pleural space"}

_NORMAL_LUNGS = (
    "The lungs are clear.",
    "Both lungs are clear and well expanded.",
    "Lungs are clear bilaterally.",
    "No focal lung abnormality.",
)
_NORMAL_HEART = (
    "Heart size is normal.",
    "The cardiac silhouette is within normal limits.",
    "The heart is not enlarged.",
    "Cardiomediastinal silhouette is unremarkable.",
)
_NORMAL_BONES = ("The bony thorax is intact.", "No acute bony abnormality.", "Osseous structures are unremarkable.")
_NORMAL_IMPRESSION = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No evidence of acute cardiopulmonary disease.",
    "Unremarkable frontal chest film.",
)


@dataclass(frozen=True)
class Question:
    """A question about a film and its true answer."""

    question: str
    answer: str
    kind: QuestionKind

    def as_tuple(self) -> tuple[str, str, str]:
        return self.question, self.answer, self.kind


class _Chooser:
    """Picks wordings; the same seed and findings pick the same."""

    def __init__(self, seed: int, stream: int, findings: Sequence[PhantomFinding]) -> None:
        self._rng = np.random.default_rng((seed, stream, sum(1 << FINDINGS.index(one.name) for one in findings)))

    def one(self, options: Sequence[str]) -> str:
        return options[int(self._rng.integers(len(options)))]

    def some(self, options: Sequence[str], count: int) -> list[str]:
        return [options[i] for i in self._rng.permutation(len(options))[:count]]

    def chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)


def write_report(seed: int, findings: Sequence[PhantomFinding]) -> str:
    """Findings and impression, e.g. "Findings: There is a small right pleural effusion. ... Impression: ..."."""
    choose = _Chooser(seed, _REPORT_WORDS, findings)
    absent = [name for name in FINDINGS if name not in {finding.name for finding in findings}]
    sentences = [_describe(finding, choose) for finding in findings]
    if all(name in absent for name in FINDINGS if name not in ("cardiomegaly", "tube", "line")):
        sentences.append(choose.one(_NORMAL_LUNGS))
    if "cardiomegaly" in absent and choose.chance(0.75):
        sentences.append(choose.one(_NORMAL_HEART))
    sentences += _deny(absent, choose)
    if choose.chance(0.35):
        sentences.append(choose.one(_NORMAL_BONES))
    impression = sentence(_join([phrase(finding) for finding in findings])) if findings else choose.one(_NORMAL_IMPRESSION)
    return f"Findings: {' '.join(sentences)} Impression: {impression}"


def phrase(finding: PhantomFinding, *, article: bool = False, noun: str = "", grade: str = "") -> str:
    """A finding as a noun phrase, e.g. "small right pleural effusion", "mild atelectasis in the left lower zone"."""
    name = finding.name
    noun = noun or _NOUNS[name][0]
    grade = grade or (_GRADES[name][_grade(finding)][0] if finding.severity else "")
    plural = _is_plural(finding)
    words = [grade, "" if finding.zone else finding.side, noun + ("s" if plural else "")]
    text = " ".join(word for word in words if word)
    if finding.zone:
        text += f" {location(finding)}"
    if not article or plural or name in _UNCOUNTED:
        return text
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def location(finding: PhantomFinding) -> str:
    """Where a finding is, e.g. "in the right lower zone", "on the left", "in both lower zones", "on both sides"."""
    if finding.zone:
        if finding.side == "bilateral":
            return f"in both {finding.zone} zones"
        return f"in the {finding.side} {finding.zone} zone"
    return "on both sides" if finding.side == "bilateral" else f"on the {finding.side}"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def write_questions(seed: int, findings: Sequence[PhantomFinding]) -> list[Question]:
    """Closed questions (as many "yes" as "no" where the film allows), location, severity and open ones."""
    choose = _Chooser(seed, _QUESTION_WORDS, findings)
    absent = [name for name in FINDINGS if name not in {finding.name for finding in findings}]
    asked: list[Question] = []
    for finding in findings:
        asked.append(Question(_ask(finding.name, choose), f"Yes, {phrase(finding, article=True)}.", "closed"))
        asked += _ask_details(finding, choose)
    for name in choose.some(absent, max(1, len(findings))):
        asked.append(Question(_ask(name, choose), _say_no(name, choose), "closed"))
    asked.append(_ask_normal(findings, choose))
    asked.append(Question(choose.one(_OPEN), describe_film(findings), "open"))
    return asked


def describe_film(findings: Sequence[PhantomFinding]) -> str:
    if not findings:
        return "The lungs are clear and the heart is not enlarged; no abnormality is seen."
    return f"The film shows {_join([phrase(finding, article=True) for finding in findings])}."


_OPEN = (
    "Describe the film.",
    "What do you see?",
    "What does this radiograph show?",
    "Write the findings of this film.",
)


def _describe(finding: PhantomFinding, choose: _Chooser) -> str:
    name = finding.name
    if name in ("tube", "line"):
        return _describe_device(finding, choose)
    noun = choose.one(_NOUNS[name])
    grade = choose.one(_GRADES[name][_grade(finding)])
    plain = phrase(finding, noun=noun, grade=grade)
    full = phrase(finding, article=True, noun=noun, grade=grade)
    plural = _is_plural(finding)
    options = [
        f"There {'are' if plural else 'is'} {full}.",
        sentence(plain),
        f"{sentence(full)[:-1]} {_seen(plural, choose)}.",
    ]
    if name == "effusion" and not plural:
        options.append(f"{sentence(grade)[:-1]} {finding.side} pleural fluid with blunting of the costophrenic angle.")
    if name == "pneumothorax":
        options.append(f"{sentence(full)[:-1]}, with a visible pleural line and no lung markings beyond it.")
    if name == "cardiomegaly":
        degree = {"small": "mildly", "moderate": "moderately", "large": "severely"}[finding.severity]
        options += [f"The heart is {degree} enlarged.", f"{sentence(degree)[:-1]} enlarged cardiac silhouette."]
    if name == "edema":
        options.append(f"{sentence(grade)[:-1]} bilateral perihilar opacities in keeping with pulmonary edema.")
    if name in ("nodule", "mass"):
        options.append(f"{sentence(f'a {grade} rounded opacity {location(finding)}')[:-1]}, a {name}.")
    return choose.one(options)


def _describe_device(finding: PhantomFinding, choose: _Chooser) -> str:
    noun = choose.one(_NOUNS[finding.name])
    if finding.name == "tube":
        return choose.one(
            (
                f"{sentence(noun)[:-1]} with its tip above the carina.",
                f"There is {'an' if noun[0] == 'e' else 'a'} {noun} in place.",
                f"The {noun} ends above the carina.",
            )
        )
    return choose.one(
        (
            f"{sentence(finding.side)[:-1]} {noun} with its tip in the superior vena cava.",
            f"There is a {finding.side} {noun} in place.",
            f"A {finding.side}-sided {noun} ends over the superior vena cava.",
        )
    )


def _seen(plural: bool, choose: _Chooser) -> str:
    return f"{'are' if plural else 'is'} {choose.one(('seen', 'present', 'noted', 'visible'))}"


def _deny(absent: Sequence[str], choose: _Chooser) -> list[str]:
    """One or two sentences on what is not there, the usual suspects first."""
    usual = [name for name in ("effusion", "pneumothorax", "consolidation") if name in absent]
    others = [name for name in ("edema", "nodule", "mass", "atelectasis", "tube", "line") if name in absent]
    denied = []
    if usual and choose.chance(0.9):
        names = [_NOUNS[name][0] for name in choose.some(usual, len(usual))]
        denied.append(f"No {_join(names, 'or')}.")
    if others and choose.chance(0.4):
        name = choose.one(_NOUNS[choose.one(others)])
        denied.append(choose.one((f"No {name}.", f"No {name} is seen.", f"There is no evidence of {_with_article(name)}.")))
    return denied


def _with_article(noun: str) -> str:
    uncounted = {one for name in _UNCOUNTED for one in _NOUNS[name]}
    if noun in uncounted:
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _ask(name: str, choose: _Chooser) -> str:
    noun = _with_article(_NOUNS[name][0])
    if name == "cardiomegaly":
        return choose.one(("Is the heart enlarged?", "Is there cardiomegaly?", "Is the cardiac silhouette enlarged?"))
    return choose.one((f"Is there {noun}?", f"Does the film show {noun}?", f"Do you see {noun}?"))


def _say_no(name: str, choose: _Chooser) -> str:
    if name == "cardiomegaly":
        return choose.one(("No, the heart is not enlarged.", "No, there is no cardiomegaly."))
    noun = _NOUNS[name][0]
    return choose.one((f"No, there is no {noun}.", f"No, no {noun} is seen."))


def _ask_details(finding: PhantomFinding, choose: _Chooser) -> list[Question]:
    noun = _NOUNS[finding.name][0]
    asked = []
    if finding.side and len(RULES[finding.name].sides) > 1:
        where = choose.one((f"Where is the {noun}?", f"On which side is the {noun}?", f"Locate the {noun}."))
        if "side" in where and finding.zone:
            where = f"Where is the {noun}?"
        asked.append(Question(where, sentence(location(finding)), "location"))
    if finding.severity:
        how = "How severe is" if finding.name in _UNCOUNTED else "How large is"
        asked.append(Question(f"{how} the {noun}?", sentence(_GRADES[finding.name][_grade(finding)][0]), "severity"))
    return asked


def _ask_normal(findings: Sequence[PhantomFinding], choose: _Chooser) -> Question:
    """A question about the whole film; "yes" is as often right as "no" on films with findings."""
    normal = choose.one(("Is this film normal?", "Is this a normal chest radiograph?"))
    if not findings:
        return Question(normal, "Yes, no abnormality is seen.", "closed")
    there_is = f"there {'are' if _is_plural(findings[0]) else 'is'} {phrase(findings[0], article=True)}."
    if choose.chance(0.5):
        return Question(normal, f"No, {there_is}", "closed")
    return Question(choose.one(("Is there any abnormality?", "Is anything abnormal?")), f"Yes, {there_is}", "closed")


def _is_plural(finding: PhantomFinding) -> bool:
    return finding.side == "bilateral" and finding.name == "effusion"


def _grade(finding: PhantomFinding) -> int:
    return ("small", "moderate", "large").index(finding.severity)


def _join(parts: Sequence[str], word: str = "and") -> str:
    if len(parts) < 3:
        return f" {word} ".join(parts)
    return f"{', '.join(parts[:-1])} {word} {parts[-1]}"
