"""How sure an answer sounds: as sure as its probability, in the decoder's own sentences, and never more."""

from __future__ import annotations

import pytest

from foundation.prompt import detokenise
from serving.evidence import Finding
from serving.wording import Wording, grade, plain_words
from training.pretraining.decoder.agreement import agreement
from training.pretraining.decoder.answers import answer
from training.pretraining.decoder.facts import FilmFacts

FINDINGS = (
    Finding("effusion", 0.16, 0.083, "right", "lower"),
    Finding("infiltration", 0.62, 0.2),
    Finding("consolidation", 0.034, 0.028),
    Finding("pneumothorax", 0.93, 0.05),
    Finding("cardiomegaly", 0.09, 0.1),
    Finding("edema", 0.01, 0.04),
)


def said(text: str, findings: tuple[Finding, ...] = FINDINGS) -> str:
    wording = Wording(findings)
    return wording.push(text) + wording.flush()


@pytest.mark.parametrize(
    ("plain", "graded"),
    [
        ("There is a pleural effusion on the right (16%).",
         "There is a possible pleural effusion on the right (16%, above its threshold of 8.3%)."),
        ("There is consolidation (3%).", "There is doubtful consolidation (3%, above its threshold of 2.8%)."),
        ("There is infiltration (62%).", "There is probable infiltration (62%)."),
        ("There is a pneumothorax (93%).", "There is a pneumothorax (93%)."),
        ("There is no pulmonary edema (1%).", "There is no pulmonary edema (1%)."),
        ("There is no cardiomegaly (9%).", "There is no cardiomegaly (9%, just below its threshold of 10%)."),
        ("Pleural effusion: yes (16%).", "Pleural effusion: yes, possible (16%, above its threshold of 8.3%)."),
        ("By its heat map the pleural effusion is in the right lower zone (16%).",
         "By its heat map the possible pleural effusion is in the right lower zone (16%, above its threshold of 8.3%)."),
        ("The film shows infiltration (62%), a pneumothorax (93%) and consolidation (3%).",
         "The film shows probable infiltration (62%), a pneumothorax (93%) and doubtful consolidation (3%, threshold 2.8%)."),
        ("The film is not normal: it shows consolidation (3%).",
         "The film may not be normal: it shows doubtful consolidation (3%, above its threshold of 2.8%)."),
        ("The film is not normal: it shows infiltration (62%) and consolidation (3%).",
         "The film is not normal: it shows probable infiltration (62%) and doubtful consolidation (3%, threshold 2.8%)."),
        ("Infiltration (62%) concerns the lung.", "Probable infiltration (62%) concerns the lung."),
        ("Not assessed: this looks like noise.", "Not assessed: this looks like noise."),
        ("There is no pleural effusion (16%).", "There is no pleural effusion (16%)."),  # the decoder's mistake is not smoothed
    ],
)  # fmt: skip
def test_a_claim_is_as_strong_as_its_probability(plain: str, graded: str) -> None:
    assert said(plain) == graded
    assert plain_words(graded) == plain


def test_what_is_said_of_a_finding_just_explained() -> None:
    text = "A pleural effusion is fluid between the lung and the chest wall. On this film it is present (16%)."
    assert said(text).endswith("On this film it is possibly present (16%, above its threshold of 8.3%).")
    assert plain_words(said(text)) == text
    absent = "Cardiomegaly is an enlarged heart. On this film it is absent (9%)."
    assert said(absent).endswith("it is absent (9%, just below its threshold of 10%).")
    assert plain_words(said(absent)) == absent


def test_pieces_come_sentence_by_sentence_and_nothing_is_lost() -> None:
    wording, whole = Wording(FINDINGS), "Yes. There is a pleural effusion (16%). It"
    pieces = [wording.push(letter) for letter in whole]
    assert next(piece for piece in pieces if piece) == "Yes."
    assert (
        "".join(pieces) + wording.flush()
        == said(whole)
        == ("Yes. There is a possible pleural effusion (16%, above its threshold of 8.3%). It")
    )
    assert Wording(()).push("There") == "There"  # without findings nothing is held back


def test_a_threshold_that_rounds_to_the_percentage_is_not_told_as_above_itself() -> None:
    near = (Finding("consolidation", 0.0312, 0.0311),)
    assert said("There is consolidation (3%).", near) == "There is doubtful consolidation (3%, just above its threshold)."


def test_grades_fall_with_the_probability() -> None:
    assert [grade(p) for p in (1.0, 0.85, 0.84, 0.5, 0.49, 0.15, 0.14, 0.0)] == [
        "", "", "probable", "probable", "possible", "possible", "doubtful", "doubtful",
    ]  # fmt: skip


QUESTIONS = (
    "Is there an effusion?", "Is there an effusion, and where?", "Is it normal?", "What does the film show?",
    "Is there effusion or consolidation?", "Is there no effusion?", "Any left effusion?", "Is the heart enlarged?",
    "How large is the effusion?", "What is an effusion?", "Is there edema?",
)  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_graded_answers_still_claim_exactly_what_is_stated(question: str) -> None:
    """The decoder's true answer, graded: its yes or no, percentages and places are those stated, and plain again after."""
    stated = tuple(one.state() for one in sorted(FINDINGS, key=lambda one: (not one.is_present, -one.probability)))
    plain = detokenise(answer(question, (), FilmFacts(stated)).split())
    graded = said(plain)
    found = agreement(question, (), graded, stated)
    assert found is not None
    assert found.is_whole, graded
    assert plain_words(graded) == plain
    for name, word in (("pleural effusion", "possible"), ("consolidation", "doubtful")):
        if f"{name} (" in plain or f"{name} on the right (" in plain:
            assert word in graded, graded
