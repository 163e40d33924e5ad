"""Questions as people put them: drawn from many phrasings, with their words left out and their capitals."""

from __future__ import annotations

import random
from collections.abc import Sequence

from foundation.lexicon import FINDINGS, OTHER_TERMS, SYNONYMS
from training.pretraining.decoder.facts import FilmFacts
from training.pretraining.decoder.sentences import COUNTED

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
FOLLOW_UPS = ("where is it?", "which side?", "on which side is it?", "how large is it?", "how severe is it?",
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
    article = rng.choice(("a ", "an ", "")) if name in COUNTED else ""
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
