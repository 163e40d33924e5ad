"""Sentences a chest radiograph is spoken of with: the corpus of the text tower.

Each sentence carries, where it was made from a template, the state it claims (finding, present or absent, side,
severity), so that training can hold "effusion" and "no effusion", "left" and "right" apart. Sources: templates over
`foundation.lexicon`, the shared manifest (train split, licence permissive or attribution), and the concept names of
DICOM's own dictionaries as pydicom carries them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.lexicon import (
    FINDINGS,
    NORMAL_PHRASES,
    OTHER_TERMS,
    SEVERITY_WORDS,
    SIDES,
    SYNONYMS,
    ZONE_WORDS,
    ZONES,
)

MIDLINE = frozenset({"cardiomegaly", "hernia", "edema", "emphysema", "scoliosis", "pacemaker", "mediastinal widening"})
NORMAL = "normal"


@dataclass(frozen=True)
class Claim:
    """What a sentence claims. `side`, `zone` and `severity` are None where it does not say."""

    finding: str
    is_present: bool
    side: str | None = None
    zone: str | None = None
    severity: str | None = None


@dataclass(frozen=True)
class Sentence:
    text: str
    claim: Claim | None = None


_PRESENT = (
    "{}",
    "{}.",
    "there is {}",
    "findings of {}",
    "evidence of {}",
    "{} is seen",
    "{} is present",
    "chest radiograph showing {}",
    "a chest x-ray with {}",
    "the film shows {}",
    "findings consistent with {}",
    "impression: {}",
    "{} is noted",
    "appearances suggest {}",
    "this patient has {}",
    "positive for {}",
    "an image of {}",
    "findings: {}",
)
_ABSENT = (
    "no {}",
    "no {}.",
    "there is no {}",
    "no evidence of {}",
    "without {}",
    "without evidence of {}",
    "chest radiograph without {}",
    "{} is absent",
    "no {} is seen",
    "negative for {}",
    "the film shows no {}",
    "{} is not seen",
    "{} has been excluded",
    "a chest x-ray without {}",
    "no sign of {}",
    "free of {}",
    "this patient does not have {}",
    "findings: no {}",
    "no focal {}",
)
_QUESTIONS = (
    "is there {}?",
    "do you see {}?",
    "can you see any {}?",
    "does the patient have {}?",
    "where is the {}?",
    "how large is the {}?",
    "is {} present?",
    "which side is the {} on?",
)
_NORMAL = (
    "{}",
    "{}.",
    "chest radiograph: {}",
    "impression: {}",
    "findings: {}",
    "a chest x-ray, {}",
    "the film is read as {}",
)


def corpus(manifest: Path | None, *, templates: int = 24_000, seed: int = 0) -> list[Sentence]:
    """All sentences, without repetition, in an order that depends on `seed` alone."""
    rng = random.Random(seed)
    sentences: dict[str, Sentence] = {}
    sources: list[Iterable[Sentence]] = [base_claims(), _templated(rng, templates), _concepts(), _everyday()]
    if manifest is not None:
        sources.insert(0, manifest_sentences(manifest))
    for source in sources:
        for sentence in source:
            sentences.setdefault(sentence.text.lower(), sentence)
    ordered = list(sentences.values())
    rng.shuffle(ordered)
    return ordered


def base_claims() -> Iterator[Sentence]:
    """Every synonym, bare, affirmed and denied in a few plain ways."""
    for finding, synonyms in {**SYNONYMS, **OTHER_TERMS}.items():
        for synonym in (finding, *synonyms):
            for template in ("{}", "there is {}", "evidence of {}"):
                yield Sentence(template.format(synonym), Claim(finding, True))
            for template in ("no {}", "there is no {}", "no evidence of {}", "without {}"):
                yield Sentence(template.format(synonym), Claim(finding, False))
    for phrase in NORMAL_PHRASES:
        for template in _NORMAL:
            yield Sentence(template.format(phrase), Claim(NORMAL, True))


def describe(claim: Claim, rng: random.Random) -> str:
    """A noun phrase for a positive claim: severity, side, term, zone."""
    term = rng.choice({**SYNONYMS, **OTHER_TERMS}[claim.finding])
    words = []
    if claim.severity:
        words.append(rng.choice(SEVERITY_WORDS[claim.severity]))
    tail = ""
    if claim.side and claim.zone:
        zone = rng.choice(ZONE_WORDS[claim.zone][:2])
        plural = "zones" if claim.side == "bilateral" else "zone"
        tail = f" in the {claim.side} {zone} {rng.choice((plural, plural, 'lung'))}"
    elif claim.side:
        if claim.side == "bilateral":
            tail = rng.choice(("", " on both sides"))
            words += [] if tail else ["bilateral"]
        elif rng.random() < 0.5:
            words.append(rng.choice((claim.side, f"{claim.side}-sided")))
        else:
            tail = f" on the {claim.side}" if rng.random() < 0.7 else f" in the {claim.side} lung"
    elif claim.zone:
        tail = f" in the {rng.choice(ZONE_WORDS[claim.zone][:2])} zone"
    return f"{' '.join([*words, term])}{tail}"


def random_claim(rng: random.Random) -> Claim:
    finding = rng.choice(FINDINGS) if rng.random() < 0.75 else rng.choice(list(OTHER_TERMS))
    if rng.random() < 0.4:
        side = rng.choice(("left", "right")) if finding not in MIDLINE and rng.random() < 0.25 else None
        return Claim(finding, False, side)
    side = rng.choice(SIDES) if finding not in MIDLINE and rng.random() < 0.65 else None
    zone = rng.choice(ZONES) if finding not in MIDLINE and rng.random() < 0.3 else None
    severity = rng.choice(tuple(SEVERITY_WORDS)) if rng.random() < 0.35 else None
    return Claim(finding, True, side, zone, severity)


def _templated(rng: random.Random, count: int) -> Iterator[Sentence]:
    for _ in range(count):
        claim = random_claim(rng)
        phrase = describe(claim, rng)
        draw = rng.random()
        if draw < 0.12:
            yield Sentence(rng.choice(_QUESTIONS).format(phrase))
        elif draw < 0.24:
            yield Sentence(_join(claim, phrase, rng))
        else:
            yield Sentence(rng.choice(_PRESENT if claim.is_present else _ABSENT).format(phrase), claim)


def _join(claim: Claim, phrase: str, rng: random.Random) -> str:
    """Two claims in one sentence; they carry no claim of their own and are learned from the teacher."""
    other = random_claim(rng)
    first, second = (
        rng.choice(_PRESENT[:6] if item.is_present else _ABSENT[:6]).format(words).rstrip(".")
        for item, words in ((claim, phrase), (other, describe(other, rng)))
    )
    return f"{first}{rng.choice((', ', ' and ', '. ', ' with '))}{second}"


def manifest_sentences(manifest: Path) -> Iterator[Sentence]:
    """Texts, label sentences, questions and answers of training rows whose licence lets their words ship."""
    for row in training_rows(manifest):
        if text := row.get("text"):
            yield from (Sentence(part) for part in _split(str(text)))
        labels = [str(label) for label in row.get("labels") or []]
        if labels and row["source"] != "vqa_rad":
            yield Sentence("chest radiograph: " + ", ".join(labels))
            view, age, sex = row.get("view"), row.get("age"), {"M": "man", "F": "woman"}.get(row.get("sex") or "")
            if view and sex and age:
                yield Sentence(f"{view} chest radiograph of a {int(age) // 10 * 10} year old {sex}: {', '.join(labels)}")
        for item in row.get("qa") or []:
            yield Sentence(str(item["question"]))
            if len(str(item["answer"])) > 3:
                yield Sentence(str(item["answer"]))


def training_rows(manifest: Path) -> Iterator[dict[str, Any]]:
    """Rows of the `train` split that may shape weights which ship."""
    with manifest.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["split"] == "train" and row["licence_class"] in ("permissive", "attribution"):
                yield row


def _split(text: str) -> list[str]:
    parts = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"(?<=[.;?])\s+", text)]
    return [part for part in parts if 2 < len(part) < 220]


_CONCEPT_SUBJECT = re.compile(
    r"lung|pulmon|pleur|thora|chest|heart|cardi|rib\b|bronch|trache|mediast|diaphragm|vascul|aort|lobe|mass|nodul|tumou?r|"
    r"cavit|calcif|effusion|edema|fibros|pneumo|infect|inflamm|fluid|opacity|density|left|right|bilateral|upper|lower|"
    r"finding|disease|lesion|normal|abnormal|radiograph|tomograph|imag|x-ray|patient|hernia|fracture|spine|stomach|brain|"
    r"liver|kidney|cyst|catheter|tube|device|view|size|shape|margin|severe|mild|acute|chronic",
    re.IGNORECASE,
)
_CONCEPT_NOISE = re.compile(r"breed|cattle|horse|\(organism\)|\bdog\b|musculus|nervus|arteria|vena\b|tooth", re.IGNORECASE)


def _concepts() -> Iterator[Sentence]:
    from pydicom.sr import _concepts_dict

    for scheme in ("SCT", "DCM", "RADLEX", "NCIt"):
        for meanings in _concepts_dict.concepts.get(scheme, {}).values():
            for name, _ in meanings.values():
                plain = re.sub(r"\s*\([a-z ]+\)$", "", name)
                if _CONCEPT_SUBJECT.search(plain) and not _CONCEPT_NOISE.search(name) and len(plain) < 60:
                    yield Sentence(plain)


_PICTURES = (
    "a photograph of {}",
    "{}",
    "a picture showing {}",
    "an image of {}, not a chest radiograph",
)
_SUBJECTS = (
    "a dog", "a cat", "a car", "a house", "a person", "a hand", "a foot", "a knee", "a brain mri", "a head ct",
    "an abdominal film", "a chest ct", "an ultrasound image", "a mammogram", "a retina", "a skin lesion", "text", "noise",
    "a landscape", "a tree", "food", "a document", "a lateral chest radiograph", "a frontal chest radiograph",
    "a portable chest radiograph", "a chest x-ray of a child", "a chest x-ray of an adult", "a skull", "a pelvis",
    "an elbow", "a spine", "a dental film", "a blank image", "a histology slide",
)  # fmt: skip
_REMARKS = (
    "thank you", "hello", "hello, what can you do?", "what is this?", "what do you see?", "describe this image",
    "describe the film", "is this normal?", "is it normal?", "is anything wrong?", "what is the diagnosis?",
    "where is it?", "on which side?", "how severe is it?", "are you sure?", "explain this to the patient",
    "write a report", "what should be done next?", "is the heart enlarged?", "is the heart normal?", "are the lungs clear?",
    "please answer briefly", "is there anything else?", "compare with the previous film", "the patient has a cough",
    "the patient has fever and chest pain", "the patient is short of breath", "the patient is a smoker",
    "the picture quality is poor", "the film is rotated", "this is not a chest radiograph", "yes", "no", "maybe",
    "i am not sure", "good morning", "can you help me?", "what does this word mean?", "which organ is shown?",
    "what modality is this?", "is this a ct scan?", "how old is the patient?", "is this a man or a woman?",
)  # fmt: skip


def _everyday() -> Iterator[Sentence]:
    for subject in _SUBJECTS:
        yield from (Sentence(template.format(subject)) for template in _PICTURES)
    yield from (Sentence(remark) for remark in _REMARKS)
