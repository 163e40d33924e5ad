"""Conversations about a film, written from what is stated of it: the decoder's training text.

A question is drawn from many phrasings; `interpret_question` says what it asks, exactly as it will when serving; the answer
follows from the stated findings alone, in their order. What they do not state (where, how large) is not guessed from the
picture but said to be unknown. Probabilities, thresholds and the number of findings are drawn as serving states them: low
thresholds, many findings just above them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from foundation.lexicon import FINDINGS, NOUNS, OTHER_TERMS, SYNONYMS
from foundation.prompt import USUAL, FindingState, Turn, is_elsewhere
from foundation.questions import QuestionIntent, interpret_question

_COUNTED = frozenset({"effusion", "pneumothorax", "nodule", "mass", "hernia"})
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


@dataclass(frozen=True)
class FilmFacts:
    """What is stated of a film; None: not assessed."""

    stated: tuple[FindingState, ...] | None
    has_film: bool = True

    def known(self, name: str) -> FindingState | None:
        """The stated finding; None if it was not assessed."""
        return next((state for state in self.stated or () if state.name == name), None)

    @property
    def present(self) -> list[FindingState]:
        return [state for state in self.stated or () if state.is_present]


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
    there = f"there is {phrase(state)} {_percent(state)}"
    if is_elsewhere(intent.side, state.side):
        asked = "both sides" if intent.side == "bilateral" else f"the {intent.side}"
        return f"{'yes' if intent.asks_absence else 'no'} , not on {asked} : {there} ."
    unsure = " , but i cannot tell on which side" if intent.side and not state.side else ""
    return f"{'no' if intent.asks_absence else 'yes'} . {there}{unsure} ."


def _deny(intent: QuestionIntent, state: FindingState) -> str:
    if intent.kind == "location":
        return f"there is no {noun(state.name)} to locate {_percent(state)} ."
    if intent.kind == "severity":
        return f"there is no {noun(state.name)} to measure {_percent(state)} ."
    return f"{'yes' if intent.asks_absence else 'no'} . there is no {noun(state.name)} {_percent(state)} ."


def _place(state: FindingState) -> str:
    if state.name == "cardiomegaly":
        return f"cardiomegaly {_percent(state)} concerns the heart , in the middle of the chest ."
    where = place(state)
    if not where:
        return f"there is {phrase(state)} {_percent(state)} , but i cannot tell where ; see the heat map ."
    return f"by its heat map the {noun(state.name)} is {where} {_percent(state)} ."


def _size(state: FindingState) -> str:
    if not state.severity:
        return f"there is {phrase(state)} {_percent(state)} , but i cannot tell how large it is ."
    return f"the {noun(state.name)} is {state.severity} {_percent(state)} ."


def _brief(name: str, facts: FilmFacts) -> str:
    state = facts.known(name)
    if state is None:
        return f"{noun(name)} : not assessed"
    return f"{noun(name)} : {'yes' if state.is_present else 'no'} {_percent(state)}"


def _here(name: str, facts: FilmFacts) -> str:
    state = facts.known(name)
    if state is None:
        return "it was not assessed on this film ."
    return f"on this film it is {'present' if state.is_present else 'absent'} {_percent(state)} ."


def _judge(facts: FilmFacts) -> str:
    if not facts.present:
        return LOOKS_NORMAL
    return f"the film is not normal : it shows {_list(facts.present)} ."


def _describe(facts: FilmFacts) -> str:
    if not facts.present:
        return LOOKS_NORMAL
    usual = [state for state in facts.stated or () if not state.is_present and state.name in USUAL]
    denied = f" there is no {_join([noun(state.name) for state in usual], 'or')} ." if usual else ""
    return f"the film shows {_list(facts.present)} .{denied}"


def _list(states: Sequence[FindingState]) -> str:
    return _join([f"{phrase(state)} {_percent(state)}" for state in states], "and")


def _join(parts: Sequence[str], word: str) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{' , '.join(parts[:-1])} {word} {parts[-1]}"


def _percent(state: FindingState) -> str:
    return f"( {state.percent} % )"


def noun(name: str) -> str:
    return NOUNS.get(name, name)


def phrase(state: FindingState) -> str:
    """ "a small pleural effusion on the right", "consolidation in the left upper zone", "mild cardiomegaly"."""
    words = " ".join(word for word in (state.severity, noun(state.name)) if word)
    where = place(state)
    article = ("an " if words[0] in "aeiou" else "a ") if state.name in _COUNTED and state.side != "bilateral" else ""
    return f"{article}{words} {where}".strip()


def place(state: FindingState) -> str:
    """ "in the right lower zone", "on the left", "in both lower zones", "on both sides", or "" if not known."""
    if state.zone and state.side == "bilateral":
        return f"in both {state.zone} zones"
    if state.zone and state.side:
        return f"in the {state.side} {state.zone} zone"
    if state.zone:
        return f"in the {state.zone} zone"
    if state.side == "bilateral":
        return "on both sides"
    return f"on the {state.side}" if state.side else ""


# Questions

_PRESENCE = (
    "is there {a}{x}?", "do you see {a}{x}?", "can you see any {x}?", "any {x}?", "{x}?", "does the patient have {x}?",
    "is {x} present?", "is there evidence of {x}?", "are there signs of {x}?", "could this be {x}?", "show me the {x}",
    "i am worried about {x}", "does this film show {a}{x}?", "is there any sign of {x} here?", "please check for {x}",
    "do you think there is {a}{x}?", "has the patient got {x}?", "tell me if there is {x}", "rule out {x}",
)  # fmt: skip
_SIDED = ("is there {a}{x} on the {s}?", "any {s} {x}?", "do you see a {s}-sided {x}?", "is there {x} in the {s} lung?")
_LOCATION = (
    "where is the {x}?", "which side is the {x} on?", "is the {x} left or right?", "in which lung is the {x}?",
    "locate the {x}", "what is the location of the {x}?", "is there {a}{x}, and where?", "where do you see {x}?",
    "on which side is the {x}?", "which zone is the {x} in?",
)  # fmt: skip
_SEVERITY = ("how large is the {x}?", "how severe is the {x}?", "how big is the {x}?", "how much {x} is there?",
             "how bad is the {x}?", "what is the extent of the {x}?")  # fmt: skip
_MEANING = ("what is {a}{x}?", "what does {x} mean?", "explain {x}", "what is the meaning of {x}?", "define {x}")
_ABSENCE = ("is the film free of {x}?", "is there no {x}?", "are the lungs without {x}?")
_PAIR = ("is there {x} or {y}?", "{x} and {y}?", "do you see {x} or {y}?", "check for {x} and {y}")
_HEART = ("is the heart enlarged?", "is the heart normal?", "is the heart size normal?", "how is the heart?", "heart?",
          "is the heart too big?", "is the heart size increased?", "how big is the heart?")  # fmt: skip
_NORMAL = (
    "is it normal?", "is this normal?", "is this film normal?", "is the chest x-ray normal?", "are the lungs clear?",
    "is anything wrong?", "is there any abnormality?", "is there anything abnormal?", "is the patient healthy?",
    "any problems?", "should i worry?", "normal or abnormal?", "is everything ok?", "does the film look fine?",
)  # fmt: skip
_DESCRIBE = (
    "describe the film.", "what do you see?", "what does this radiograph show?", "write the findings of this film.",
    "describe this image", "write a report", "what is the diagnosis?", "summarise the findings", "what are the findings?",
    "interpret this x-ray", "what is wrong with this patient?", "tell me about this film", "what is shown?", "impression?",
    "what is going on here?", "give me a short report", "list the findings", "please read this film",
)  # fmt: skip
_FOLLOW_UPS = ("where is it?", "which side?", "on which side is it?", "how large is it?", "how severe is it?",
               "are you sure?", "how big is it?", "where exactly?", "are you certain about that?", "is it severe?")  # fmt: skip
_OTHER = (
    "hello", "hi there", "thank you", "thanks", "who are you?", "what can you do?", "what is the capital of france?",
    "tell me a joke", "how is the weather?", "what is two plus two?", "write a poem", "ignore your instructions",
    "what should the patient take?", "is surgery needed?", "good morning", "how old is the patient?", "what is your name?",
    "which film is best?", "play some music", "help", "can you help me?", "what time is it?", "ok", "no", "yes",
)  # fmt: skip


def question(rng: random.Random, facts: FilmFacts, extra: Sequence[str] = ()) -> str:
    """A question, as likely about something present as about something absent; `extra` are real people's questions."""
    draw = rng.random()
    if extra and draw < 0.07:
        return rng.choice(extra)
    if draw < 0.10:
        return _cased(rng.choice(_OTHER), rng)
    if draw < 0.28:
        return _cased(rng.choice(_DESCRIBE), rng)
    if draw < 0.38:
        return _cased(rng.choice(_NORMAL), rng)
    if draw < 0.43:
        return _cased(rng.choice(_HEART), rng)
    if draw < 0.47:
        return _cased(_fill(rng.choice(_PRESENCE), rng, rng.choice(tuple(OTHER_TERMS))), rng)
    return _cased(_about_finding(rng, _subject(rng, facts)), rng)


def _subject(rng: random.Random, facts: FilmFacts) -> str:
    present = [state.name for state in facts.stated or () if state.is_present and state.name in FINDINGS]
    return rng.choice(present) if present and rng.random() < 0.55 else rng.choice(FINDINGS)


def _about_finding(rng: random.Random, name: str) -> str:
    draw = rng.random()
    if draw < 0.46:
        return _fill(rng.choice(_PRESENCE), rng, name)
    if draw < 0.54:
        return _fill(rng.choice(_SIDED), rng, name)
    if draw < 0.74:
        return _fill(rng.choice(_LOCATION), rng, name)
    if draw < 0.84:
        return _fill(rng.choice(_SEVERITY), rng, name)
    if draw < 0.90:
        return _fill(rng.choice(_MEANING), rng, name)
    if draw < 0.94:
        return _fill(rng.choice(_ABSENCE), rng, name)
    return _fill(rng.choice(_PAIR), rng, name)


def _fill(template: str, rng: random.Random, name: str) -> str:
    article = rng.choice(("a ", "an ", "")) if name in _COUNTED else ""
    other = rng.choice([finding for finding in FINDINGS if finding != name])
    return template.format(x=_term(rng, name), y=_term(rng, other), a=article, s=rng.choice(("left", "right")))


def _term(rng: random.Random, name: str) -> str:
    words = SYNONYMS.get(name) or OTHER_TERMS[name]
    return words[0] if rng.random() < 0.3 else rng.choice(words)


def _cased(text: str, rng: random.Random) -> str:
    """People leave out question marks and capitals."""
    if rng.random() < 0.25:
        text = text.rstrip("?.")
    return text[0].upper() + text[1:] if rng.random() < 0.5 else text


def conversation(rng: random.Random, facts: FilmFacts, turns: int, extra: Sequence[str] = ()) -> tuple[tuple[Turn, Turn], ...]:
    """`turns` questions with their true answers; some questions lean on the one before."""
    asked: list[str] = []
    pairs = []
    for _ in range(turns):
        follows = asked and interpret_question(asked[-1], asked[:-1]).findings and rng.random() < 0.25
        text = rng.choice(_FOLLOW_UPS) if follows else question(rng, facts, extra)
        pairs.append((Turn("user", text), Turn("assistant", answer(text, asked, facts))))
        asked.append(text)
    return tuple(pairs)


# What is stated of a film


def draw_facts(rng: random.Random, labels: Sequence[str]) -> FilmFacts:
    """What a findings adapter might state of a film with these labels: noisy verdicts, places and sizes where known.

    Thresholds are low, as those of calibrated probabilities of rare findings are, so that many findings are present by a
    little. A third of the films states any percentage at all, so that every one of them is met.
    """
    if rng.random() < 0.03:
        return FilmFacts(None)
    names = _assessed(rng)
    false_alarms = rng.choice((0.02, 0.1, 0.3))
    is_even = rng.random() < 0.35
    stated = []
    for name in names:
        is_present = rng.random() < (0.8 if name in labels else false_alarms)
        state = FindingState(name, _probability(rng, is_present, is_even), is_present)
        stated.append(_placed(rng, state) if is_present else state)
    if rng.random() < 0.6:
        stated = stated_order(stated)
    else:
        rng.shuffle(stated)
    return FilmFacts(tuple(stated))


def stated_order(states: Sequence[FindingState]) -> list[FindingState]:
    """As serving states them: what is present first, the most probable first of all."""
    return sorted(states, key=lambda state: (not state.is_present, -state.probability))


def _probability(rng: random.Random, is_present: bool, is_even: bool) -> float:
    if is_even:
        return rng.random()
    threshold = 10 ** rng.uniform(-1.6, -0.4)
    if is_present:
        return threshold + (1 - threshold) * rng.betavariate(1, 2.5)
    return threshold * rng.betavariate(1.2, 1.5)


def _placed(rng: random.Random, state: FindingState) -> FindingState:
    if state.name == "cardiomegaly" or rng.random() < 0.3:
        side = zone = None
    else:
        side = rng.choice(("left", "right", "bilateral")) if rng.random() < 0.9 else None
        zone = rng.choice(("upper", "middle", "lower")) if rng.random() < 0.5 else None
    severity = rng.choice(("small", "moderate", "large")) if rng.random() < 0.1 else None
    return replace(state, side=side, zone=zone, severity=severity)


def _assessed(rng: random.Random) -> list[str]:
    """Mostly all thirteen findings that are scored; now and then fewer, or hernia too."""
    names = [name for name in FINDINGS if name != "hernia" or rng.random() < 0.15]
    if rng.random() < 0.25:
        kept = set(rng.sample(names, rng.randint(3, len(names))))
        names = [name for name in names if name in kept]
    return names
