"""Sentences that state the outcome go, whole; others stay as they were."""

from __future__ import annotations

import pytest

from adapters.tasks.outcomes import remove_outcomes, sentences


@pytest.mark.parametrize(
    "sentence",
    [
        "The patient died on day 9.",
        "Admitted to the ICU.",
        "He was transferred to Intensive Care.",
        "She was intubated.",
        "No intubation was needed.",
        "Re-intubated on the same evening.",
        "Patient has been extubated.",
        "Endotracheal tube in place.",
        "Mechanical ventilation was started.",
        "Invasive mechanical ventilation.",
        "ECMO was begun.",
        "Discharged home after a week.",
        "Full recovery.",
        "The woman recovered.",
        "A fatal case.",
        "Postmortem findings.",
        "A non-survivor.",
        "She survived.",
        "Expired the next day.",
        "Tracheostomy on day 20.",
        "ICU-admission was refused.",
    ],
)
def test_a_sentence_that_states_the_outcome_is_removed(sentence: str) -> None:
    clean = remove_outcomes(f"Fever for 3 days. {sentence} Opacities in both lungs.")
    assert clean.text == "Fever for 3 days. Opacities in both lungs."
    assert clean.removed == (sentence,)


@pytest.mark.parametrize(
    "sentence",
    [
        "Fever of 38.5 degrees and cough.",
        "Difficulty breathing, oxygen saturation 85 %.",
        "Reduced ventilation of the left base.",
        "Dry cough since a diet of vicuna meat.",
        "Dr. Lee saw bilateral consolidation.",
    ],
)
def test_other_sentences_stay_as_they_are(sentence: str) -> None:
    clean = remove_outcomes(sentence)
    assert (clean.text, clean.removed) == (sentence, ())


def test_a_note_of_which_nothing_is_left_is_empty() -> None:
    assert remove_outcomes("Died. Was in ICU!") == remove_outcomes(" Died.\nWas in ICU! ")
    assert remove_outcomes("Died. Was in ICU!").text == ""
    assert remove_outcomes("").text == ""


def test_sentences_are_cut_where_they_end() -> None:
    note = "Temp. 38.5; cough\nDr. Lee: no effusion. Discussion: Two weeks later, e.g. on day 14, better"
    assert sentences(note) == [
        "Temp. 38.5;",
        "cough",
        "Dr. Lee: no effusion.",
        "Discussion: Two weeks later, e.g. on day 14, better",
    ]
