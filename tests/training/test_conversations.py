"""What the decoder is taught is true of what is stated, and refuses what is not."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from foundation.lexicon import FINDINGS
from foundation.prompt import FindingState
from training.conversations import (
    FILM_NOT_ASSESSED,
    LOOKS_NORMAL,
    NO_FILM,
    FilmFacts,
    answer,
    conversation,
    film_facts,
    phantom_facts,
)

EFFUSION = FindingState("effusion", 0.83, True, "right", None, "small")
FACTS = FilmFacts((FindingState("cardiomegaly", 0.1, False), EFFUSION))


def test_answers_follow_what_is_stated() -> None:
    assert answer("Is there fluid around the lung?", [], FACTS) == (
        "yes . there is a small pleural effusion on the right ( 83 % ) ."
    )
    assert answer("Is the heart enlarged?", [], FACTS) == "no . there is no cardiomegaly ( 10 % ) ."
    assert answer("Is the heart normal?", [], FACTS) == "yes . there is no cardiomegaly ( 10 % ) ."
    assert answer("Where is it?", ["Is there an effusion?"], FACTS) == ("the pleural effusion is on the right ( 83 % ) .")
    assert answer("Any effusion on the left?", [], FACTS).startswith("not there")
    assert answer("Is it normal?", [], FACTS).startswith("the film is not normal")
    assert answer("Is it normal?", [], FilmFacts((FindingState("mass", 0.1, False),))) == LOOKS_NORMAL


def test_false_premises_and_the_unknown_are_refused() -> None:
    assert answer("How large is the enlarged heart?", [], FACTS) == "there is no cardiomegaly to measure ( 10 % ) ."
    assert answer("Where is the mass?", [], FACTS) == "lung mass was not assessed on this film ."
    assert answer("Is there a rib fracture?", [], FACTS) == "i do not assess fracture on this film , so i cannot say ."
    assert answer("Describe the film.", [], FilmFacts(None)) == FILM_NOT_ASSESSED
    assert answer("Describe the film.", [], FilmFacts((), has_film=False)) == NO_FILM


def test_only_what_the_picture_shows_is_added() -> None:
    seen = {"effusion": EFFUSION}
    hidden = FilmFacts((FindingState("effusion", 0.7, True),), seen)
    assert answer("Which side is the effusion on?", [], hidden) == "the pleural effusion is on the right ( 70 % ) ."
    stated_otherwise = FilmFacts((FindingState("effusion", 0.7, True, "left"),), seen)
    assert "on the left" in answer("Which side is the effusion on?", [], stated_otherwise)
    denied = FilmFacts((FindingState("effusion", 0.1, False),), seen)
    assert answer("Which side is the effusion on?", [], denied).startswith("there is no pleural effusion")


@given(st.integers(0, 10_000))
def test_a_conversation_repeats_with_its_seed_and_says_yes_only_to_what_is_present(seed: int) -> None:
    facts = phantom_facts(random.Random(seed), (EFFUSION,))
    first = conversation(random.Random(seed), facts, 4)
    assert first == conversation(random.Random(seed), facts, 4)
    present = {state.name for state in facts.present}
    for _, said in first:
        if said.text.startswith("yes . there is") and not said.text.startswith("yes . there is no"):
            assert present


def test_yes_and_no_are_balanced_and_every_finding_is_asked_about() -> None:
    rng = random.Random(0)
    texts = [said.text for _ in range(800) for _, said in conversation(rng, film_facts(rng, rng.sample(FINDINGS, 2)), 4)]
    yes = sum(text.startswith("yes") for text in texts)
    no = sum(text.startswith("no .") for text in texts)
    assert 0.5 < yes / no < 2
    for finding in FINDINGS:
        assert sum(finding in text for text in texts) > 20
