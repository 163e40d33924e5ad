"""What the decoder is taught is true of what is stated, and refuses what is not."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from foundation.lexicon import FINDINGS
from foundation.prompt import FindingState, detokenise, findings_text, hint_text
from training.pretraining.decoder.agreement import agreement, yes_or_no
from training.pretraining.decoder.answers import FILM_NOT_ASSESSED, LOOKS_NORMAL, NO_FILM, answer
from training.pretraining.decoder.conversations import conversation
from training.pretraining.decoder.facts import FilmFacts, draw_facts

EFFUSION = FindingState("effusion", 0.83, True, "right", None, "small")
FACTS = FilmFacts((FindingState("cardiomegaly", 0.1, False), EFFUSION))


def test_answers_follow_what_is_stated() -> None:
    assert answer("Is there fluid around the lung?", [], FACTS) == (
        "yes . there is a small pleural effusion on the right ( 83 % ) ."
    )
    assert answer("Is the heart enlarged?", [], FACTS) == "no . there is no cardiomegaly ( 10 % ) ."
    assert answer("Is the heart normal?", [], FACTS) == "yes . there is no cardiomegaly ( 10 % ) ."
    assert answer("Where is it?", ["Is there an effusion?"], FACTS) == (
        "by its heat map the pleural effusion is on the right ( 83 % ) ."
    )
    assert answer("Any effusion on the left?", [], FACTS).startswith("no , not on the left : there is a small pleural effusion")
    assert answer("Is it normal?", [], FACTS).startswith("no . the film is not normal")
    assert answer("Is anything wrong?", [], FACTS).startswith("yes . the film is not normal")
    clear = FilmFacts((FindingState("mass", 0.1, False),))
    assert answer("Is it normal?", [], clear) == f"yes . {LOOKS_NORMAL}"
    assert answer("Is anything wrong?", [], clear) == f"no . {LOOKS_NORMAL}"
    assert answer("Normal or abnormal?", [], clear) == LOOKS_NORMAL


def test_false_premises_and_the_unknown_are_refused() -> None:
    assert answer("How large is the enlarged heart?", [], FACTS) == "there is no cardiomegaly to measure ( 10 % ) ."
    assert answer("Where is the mass?", [], FACTS) == "lung mass was not assessed on this film ."
    assert answer("Is there a rib fracture?", [], FACTS) == "i do not assess fracture on this film , so i cannot say ."
    assert answer("Describe the film.", [], FilmFacts(None)) == FILM_NOT_ASSESSED
    assert answer("Describe the film.", [], FilmFacts((), has_film=False)) == NO_FILM


def test_what_is_not_stated_is_said_to_be_unknown() -> None:
    bare = FilmFacts((FindingState("effusion", 0.7, True),))
    assert "cannot tell where" in answer("Where is the effusion?", [], bare)
    assert "cannot tell how large" in answer("How large is the effusion?", [], bare)
    assert "cannot tell on which side" in answer("Is there an effusion on the left?", [], bare)
    denied = FilmFacts((FindingState("effusion", 0.1, False),))
    assert answer("Which side is the effusion on?", [], denied).startswith("there is no pleural effusion")


@given(st.integers(0, 10_000))
def test_every_answer_agrees_with_its_hint_and_with_what_is_stated(seed: int) -> None:
    rng = random.Random(seed)
    facts = draw_facts(rng, ("effusion", "mass"))
    assert conversation(random.Random(seed), facts, 4) == conversation(random.Random(seed), facts, 4)
    asked: list[str] = []
    for question, said in conversation(random.Random(seed), facts, 4):
        verdict = hint_text(question.text, asked, findings_text(facts.stated)).split()[0]
        if verdict in ("yes", "no") or yes_or_no(said.text) is not None:
            assert said.text.split()[0] == verdict
        if facts.stated is not None:
            found = agreement(question.text, asked, detokenise(said.text.split()), facts.stated)
            assert found is None or found.is_whole, (question, said, found)
        asked.append(question.text)


def test_a_changed_claim_is_seen() -> None:
    stated = FACTS.stated or ()
    right = "The film shows a pleural effusion on the right (83%). There is no cardiomegaly."

    def marks(text: str) -> tuple[bool | None, ...]:
        found = agreement("Describe the film.", (), text, stated)
        assert found is not None
        return found.findings, found.percents, found.places

    assert marks(right) == (True, True, True)
    assert marks(right.replace("83", "93")) == (True, False, True)
    assert marks(right.replace("right", "left")) == (True, True, False)
    assert marks(right.replace(" There", " A pleural effusion (83%). There"))[0] is False  # twice
    assert marks("There is no pleural effusion (83%).")[0] is False
    closed = agreement("Is there an effusion?", (), "No. There is a pleural effusion on the right (83%).", stated)
    assert closed is not None
    assert closed.verdict is False
    unknown = agreement("Is there a hernia?", (), "No. There is no hiatal hernia (3%).", stated)
    assert unknown is not None
    assert not unknown.is_whole


def test_yes_and_no_are_balanced_and_every_finding_is_asked_about() -> None:
    rng = random.Random(0)
    texts = [said.text for _ in range(800) for _, said in conversation(rng, draw_facts(rng, rng.sample(FINDINGS, 2)), 4)]
    yes = sum(text.startswith("yes") for text in texts)
    no = sum(text.startswith("no .") for text in texts)
    assert 0.5 < yes / no < 2
    for finding in FINDINGS:
        assert sum(finding in text for text in texts) > 20


def test_every_percentage_is_met() -> None:
    rng = random.Random(0)
    said = {state.percent for _ in range(1500) for state in draw_facts(rng, ("effusion",)).stated or ()}
    assert said == set(range(101))
