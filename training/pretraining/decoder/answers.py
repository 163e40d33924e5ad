"""Answers: what the decoder shall say to a question, from what is stated of a film.

They follow from the stated findings alone, in their order. What these do not state (where, how large) is not guessed from
the picture but said to be unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

from foundation.prompt import USUAL, FindingState, is_elsewhere
from foundation.questions import QuestionIntent, interpret_question
from training.pretraining.decoder.facts import FilmFacts
from training.pretraining.decoder.sentences import join, listed, noun, percent, phrase, place

MEANINGS: dict[str, str] = {
    "atelectasis": "atelectasis is a part of the lung that has lost its air and shrunk",
    "cardiomegaly": "cardiomegaly is an enlarged heart , wider than half of the chest on a frontal film",
    "consolidation": "consolidation is lung whose air spaces are filled with fluid or pus , so that it looks white",
    "edema": "pulmonary edema is fluid in the lung tissue , often from a weak heart",
    "effusion": "a pleural effusion is fluid between the lung and the chest wall",
    "emphysema": "emphysema is lung tissue that is destroyed and over-inflated",
    "fibrosis": "fibrosis is scarring of the lung tissue",
    "hernia": "a hiatal hernia is a part of the stomach that has moved up into the chest",
    "infiltration": "infiltration is a hazy shadow in the lung , from fluid or inflammation",
    "mass": "a lung mass is a rounded shadow larger than three centimetres",
    "nodule": "a lung nodule is a rounded shadow of up to three centimetres",
    "pleural thickening": "pleural thickening is a thickened lining of the lung , often an old scar",
    "pneumonia": "pneumonia is an infection of the lung",
    "pneumothorax": "a pneumothorax is air between the lung and the chest wall , so that the lung collapses",
}
FILM_NOT_ASSESSED = "this picture is not assessed : it does not look like a chest film of a kind i know ."
NO_FILM = "please give me a chest film first ; without one there is nothing to see ."
OUT_OF_SCOPE = "i can only answer questions about this chest film , for example : is there an effusion ?"
LOOKS_NORMAL = "the film looks normal : no finding reaches its threshold ."


def answer(question: str, earlier: Sequence[str], facts: FilmFacts) -> str:
    """The true answer, as the decoder's lower-case words."""
    if not facts.has_film:
        return NO_FILM
    if facts.stated is None:
        return FILM_NOT_ASSESSED
    intent = interpret_question(question, earlier)
    if intent.findings:
        return _answer_about_findings(intent, facts)
    if intent.term:
        return f"i do not assess {intent.term} on this film , so i cannot say ."
    if intent.kind == "normal":
        return f"{'yes' if intent.asks_absence == (not facts.present) else 'no'} . {_judge(facts)}"
    if intent.kind == "describe":
        return _describe(facts)
    if intent.kind in ("location", "severity"):  # "where is it?" with nothing to refer to
        return _judge(facts)
    return OUT_OF_SCOPE


def _answer_about_findings(intent: QuestionIntent, facts: FilmFacts) -> str:
    if intent.kind == "meaning" and intent.finding:
        return f"{MEANINGS[intent.finding]} . {_here(intent.finding, facts)}"
    if len(intent.findings) > 1:
        return " ; ".join(_brief(name, facts) for name in intent.findings[:4]) + " ."
    name = intent.findings[0]
    state = facts.known(name)
    if state is None:
        return f"{noun(name)} was not assessed on this film ."
    if not state.is_present:
        return _deny(intent, state)
    if intent.kind == "location":
        return _place(state)
    if intent.kind == "severity":
        return _size(state)
    return _affirm(intent, state)


def _affirm(intent: QuestionIntent, state: FindingState) -> str:
    there = f"there is {phrase(state)} {percent(state)}"
    if is_elsewhere(intent.side, state.side):
        asked = "both sides" if intent.side == "bilateral" else f"the {intent.side}"
        return f"{'yes' if intent.asks_absence else 'no'} , not on {asked} : {there} ."
    unsure = " , but i cannot tell on which side" if intent.side and not state.side else ""
    return f"{'no' if intent.asks_absence else 'yes'} . {there}{unsure} ."


def _deny(intent: QuestionIntent, state: FindingState) -> str:
    if intent.kind == "location":
        return f"there is no {noun(state.name)} to locate {percent(state)} ."
    if intent.kind == "severity":
        return f"there is no {noun(state.name)} to measure {percent(state)} ."
    return f"{'yes' if intent.asks_absence else 'no'} . there is no {noun(state.name)} {percent(state)} ."


def _place(state: FindingState) -> str:
    if state.name == "cardiomegaly":
        return f"cardiomegaly {percent(state)} concerns the heart , in the middle of the chest ."
    where = place(state)
    if not where:
        return f"there is {phrase(state)} {percent(state)} , but i cannot tell where ; see the heat map ."
    return f"by its heat map the {noun(state.name)} is {where} {percent(state)} ."


def _size(state: FindingState) -> str:
    if not state.severity:
        return f"there is {phrase(state)} {percent(state)} , but i cannot tell how large it is ."
    return f"the {noun(state.name)} is {state.severity} {percent(state)} ."


def _brief(name: str, facts: FilmFacts) -> str:
    state = facts.known(name)
    if state is None:
        return f"{noun(name)} : not assessed"
    return f"{noun(name)} : {'yes' if state.is_present else 'no'} {percent(state)}"


def _here(name: str, facts: FilmFacts) -> str:
    state = facts.known(name)
    if state is None:
        return "it was not assessed on this film ."
    return f"on this film it is {'present' if state.is_present else 'absent'} {percent(state)} ."


def _judge(facts: FilmFacts) -> str:
    if not facts.present:
        return LOOKS_NORMAL
    return f"the film is not normal : it shows {listed(facts.present)} ."


def _describe(facts: FilmFacts) -> str:
    if not facts.present:
        return LOOKS_NORMAL
    usual = [state for state in facts.stated or () if not state.is_present and state.name in USUAL]
    denied = f" there is no {join([noun(state.name) for state in usual], 'or')} ." if usual else ""
    return f"the film shows {listed(facts.present)} .{denied}"
