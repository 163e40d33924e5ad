"""Phrasings people use, each with what it asks for."""

from __future__ import annotations

import pytest

from foundation.lexicon import FINDINGS, SYNONYMS
from foundation.questions import interpret_question

PHRASINGS = [
    ("Is there an effusion?", "presence", "effusion"),
    ("Is there an effusion, and where?", "location", "effusion"),
    ("any pleural fluid on the left?", "presence", "effusion"),
    ("Is there fluid in the lungs?", "presence", "edema"),
    ("Where is the pneumothorax?", "location", "pneumothorax"),
    ("Which side is the collapsed lung on?", "location", "pneumothorax"),
    ("how big is the nodule", "severity", "nodule"),
    ("How severe is the pulmonary oedema?", "severity", "edema"),
    ("Is the heart enlarged?", "presence", "cardiomegaly"),
    ("Is the heart size normal?", "presence", "cardiomegaly"),
    ("do you see an enlarged cardiac silhouette", "presence", "cardiomegaly"),
    ("Is it normal?", "normal", None),
    ("is this chest x-ray normal", "normal", None),
    ("Are the lungs clear?", "normal", None),
    ("Is anything wrong?", "normal", None),
    ("Is there any abnormality?", "normal", None),
    ("Describe the film.", "describe", None),
    ("What do you see?", "describe", None),
    ("write a short report", "describe", None),
    ("What does this radiograph show?", "describe", None),
    ("what is the diagnosis?", "describe", None),
    ("can you see pnuemothorax?", "presence", "pneumothorax"),
    ("is there an efusion", "presence", "effusion"),
    ("Does the patient have pneumonia?", "presence", "pneumonia"),
    ("is there lung cancer", "presence", "mass"),
    ("Are there nodules?", "presence", "nodule"),
    ("Is there scarring in the lungs?", "presence", "fibrosis"),
    ("is the pleura thickened", "presence", "pleural thickening"),
    ("are the lungs hyperinflated?", "presence", "emphysema"),
    ("What is an effusion?", "meaning", "effusion"),
    ("what does cardiomegaly mean?", "meaning", "cardiomegaly"),
    ("hello", "other", None),
    ("what is the capital of France?", "other", None),
]


@pytest.mark.parametrize(("question", "kind", "finding"), PHRASINGS)
def test_a_phrasing_is_understood(question: str, kind: str, finding: str | None) -> None:
    intent = interpret_question(question)
    assert (intent.kind, intent.finding) == (kind, finding)


@pytest.mark.parametrize("finding", FINDINGS)
def test_every_synonym_names_its_finding(finding: str) -> None:
    for synonym in SYNONYMS[finding]:
        assert interpret_question(f"Is there {synonym}?").finding == finding, synonym
        assert interpret_question(f"WHERE IS THE {synonym.upper()}?").kind == "location", synonym


def test_a_follow_up_takes_the_finding_of_the_turn_before() -> None:
    intent = interpret_question("Where is it?", ["Is the heart enlarged?", "Is there a mass?"])
    assert (intent.kind, intent.finding) == ("location", "mass")
    assert interpret_question("Where is it?").finding is None
    assert interpret_question("Describe the film.", ["Is there a mass?"]).finding is None


def test_side_absence_and_several_findings() -> None:
    assert interpret_question("Is there a right-sided effusion?").side == "right"
    assert interpret_question("Is the heart normal?").asks_absence
    assert not interpret_question("Is the heart enlarged?").asks_absence
    assert not interpret_question("Is the heart larger than normal?").asks_absence
    assert interpret_question("Effusion or pneumothorax?").findings == ("effusion", "pneumothorax")


def test_what_is_not_assessed_is_named_as_such() -> None:
    intent = interpret_question("Is there a rib fracture?")
    assert intent.finding is None
    assert intent.term == "fracture"
