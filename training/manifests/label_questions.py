"""Questions that a film's labels answer, in the short forms clinicians ask in: more lessons than people have written.

    labels   "Is there a pleural effusion?"       yes where the film has the label, no where it has not
             "Are the costophrenic angles sharp?" the other way round
    normal   "Is this a normal film?"             its one label is "normal"
    view     "Is this a PA film?", "AP or PA?"    where the row names one of the two
    sex      "Is this patient male or female?"    where the row names it

`choose_films` picks films so that rare labels are there as often as common ones; `label_questions` asks about them, each
topic in its share and with a stated share of yes, whatever the films: what is answered has to be looked up in the film.
Labels are taken at their word; where a data set leaves findings unlabelled, so do the answers.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundation.errors import ManifestError
from foundation.lexicon import FINDINGS, SYNONYMS
from foundation.prompts import NORMAL
from training.manifests.qa import QaRow

if TYPE_CHECKING:
    from training.manifests.row import Row

_PRESENCE = (
    "Is there {a}{x}?", "Is there {a}{x} present?", "Is {a}{x} present?", "Do you see {a}{x}?", "Is/Are there {a}{x}?",
    "Does this patient have {a}{x}?", "Does this image show {a}{x}?", "Is there evidence of {a}{x}?", "Is {a}{x} seen?",
    "Can {a}{x} be appreciated?", "Is {a}{x} present in this image?",
)  # fmt: skip
_COUNTED = frozenset({"effusion", "pneumothorax", "nodule", "mass", "hernia"})
_UNASKED = frozenset({"hernia"})  # too rare to be scored, in serving as here
_WORDS = {"cardiomegaly": 1}  # how many synonyms are asked with, the plainest first: an "enlarged heart" wants other forms
_MOST_WORDS = 3


@dataclass(frozen=True)
class Topic:
    """What is asked. asks: a yes means that it holds; denies: a yes means that it does not; kind: VQA-RAD's of questions."""

    name: str
    kind: str
    share: float
    asks: tuple[str, ...]
    denies: tuple[str, ...] = ()


_OWN: Mapping[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic("cardiomegaly", "SIZE", 6.0,
              ("Is the heart enlarged?", "Is/Are the heart enlarged?", "Does the heart look enlarged?",
               "Is there cardiomegaly?", "Is the heart larger than normal?", "Is the cardiac silhouette enlarged?",
               "Is the heart size abnormal?", "Is the heart greater than 50% of the chest diameter?",
               "Is the heart abnormally large?"),
              ("Is the heart size normal?", "Is the heart a normal size?",
               "Is the cardiac silhouette within normal size limits?")),
        Topic("effusion", "PRES", 4.0,
              ("Is there pleural fluid?", "Are the costophrenic angles blunted?", "Is there a pleural effusion?",
               "Is there blunting of the costophrenic angle?"),
              ("Are the costophrenic angles sharp?", "Are the costophrenic angles preserved?")),
        Topic("emphysema", "SIZE", 2.0,
              ("Are the lungs hyperinflated?", "Is there hyperinflation?", "Do the lungs appear hyperinflated?")),
        Topic("pneumothorax", "PRES", 4.0, ()),
        Topic("nodule", "PRES", 1.5, ("Are nodules present in the lungs?", "Are there nodules in the lung?")),
        Topic("mass", "PRES", 1.5, ("Is there a mass in the lung?", "Can a pulmonary mass be appreciated?")),
        Topic("consolidation", "PRES", 1.5, ("Are there any consolidations present in the lungs?",)),
    )
}  # fmt: skip
_WHOLE = (
    Topic(NORMAL, "ABN", 4.0,
          ("Is this image normal?", "Is the image normal?", "Is this a normal image?", "Are the lungs normal?",
           "Is the chest x-ray normal?", "Is this a normal film?"),
          ("Is this image abnormal?", "Is anything wrong in the image?", "Is there an abnormality?",
           "Anything abnormal in this image?", "Is there anything wrong with the lungs?")),
    Topic("PA", "PLANE", 2.0,
          ("Is this a PA film?", "Was this taken in PA position?", "Is this a PA image?"),
          ("Is this an AP film?", "Is this an AP image?", "Is this an anterior-posterior image?")),
)  # fmt: skip
_VIEWS = ("Is this a PA or AP film?", "Is this an AP or PA film?")
_SEXES = ("Is this patient male or female?", "Is the patient a female or male?")
_CHOICE_SHARE = 0.7
_OTHER_SHARE = 0.4
"""Of topics, in proportion: clinicians ask most about heart, effusion and pneumothorax, and whether a film is normal."""


def choose_films(rows: Sequence[Row], count: int, seed: int) -> tuple[Row, ...]:
    """At most `count` labelled rows, the labels in turn, each with a film not chosen yet; in the order of `rows`."""
    rng = random.Random(seed)
    waiting: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for label in row.labels:
            if label == NORMAL or label in FINDINGS:
                waiting[label].append(row)
    for group in waiting.values():
        rng.shuffle(group)
    chosen: set[str] = set()
    while waiting and len(chosen) < count:
        for label in sorted(waiting):
            row = waiting[label].pop()
            if len(chosen) < count:
                chosen.add(row.id)
            if not waiting[label]:
                del waiting[label]
    return tuple(row for row in rows if row.id in chosen)


def label_questions(rows: Sequence[Row], count: int, seed: int, present: float = 0.5) -> tuple[QaRow, ...]:
    """`count` questions about these films. present: the share of questions about something that the film has.

    Raises ManifestError where the labels of these rows answer nothing that is asked.
    """
    rng = random.Random(seed)
    topics = [(topic, _divided(rows, topic)) for topic in _topics()]
    asked = [(topic, sides) for topic, sides in topics if all(sides)]
    choices = [choice for choice in _choices(rows) if choice]
    if not asked:
        raise ManifestError(
            "No row has labels that questions could be made of; name other rows in `where`, or set made.films = 0."
        )
    shares = [topic.share for topic, _ in asked] + [_CHOICE_SHARE] * len(choices)
    made = []
    for place in rng.choices(range(len(shares)), shares, k=count):
        if place < len(asked):
            made.append(_closed(rng, *asked[place], present))
        else:
            made.append(rng.choice(choices[place - len(asked)]))
    return tuple(made)


def _closed(rng: random.Random, topic: Topic, sides: tuple[list[Row], list[Row]], present: float) -> QaRow:
    holds = rng.random() < present
    film = rng.choice(sides[0] if holds else sides[1])
    is_denial = bool(topic.denies) and rng.random() < 0.3
    text = rng.choice(topic.denies if is_denial else topic.asks)
    return QaRow(film, text, "yes" if holds != is_denial else "no", is_closed=True, kind=topic.kind)


def _topics() -> Iterator[Topic]:
    yield from _WHOLE
    for name in FINDINGS:
        if name not in _UNASKED:
            own = _OWN.get(name, Topic(name, "PRES", _OTHER_SHARE, ()))
            yield Topic(name, own.kind, own.share, (*own.asks, *_presence(name)), own.denies)


def _presence(name: str) -> Iterator[str]:
    for word in SYNONYMS[name][: _WORDS.get(name, _MOST_WORDS)]:
        article = ("an " if word[0] in "aeiou" else "a ") if name in _COUNTED else ""
        yield from (form.format(a=article, x=word) for form in _PRESENCE)


def _divided(rows: Sequence[Row], topic: Topic) -> tuple[list[Row], list[Row]]:
    """(films of which it holds, films of which it does not); films that do not say are in neither."""
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        holds = _holds(row, topic)
        if holds is not None:
            sides[not holds].append(row)
    return sides


def _holds(row: Row, topic: Topic) -> bool | None:
    if topic.name == "PA":
        view = str(row.get("view") or "")
        return view == "PA" if view in ("PA", "AP") else None
    return topic.name in row.labels if row.labels else None


def _choices(rows: Sequence[Row]) -> tuple[list[QaRow], list[QaRow]]:
    """Questions of one word among two: the view, the sex."""
    views, sexes = {"PA": "PA", "AP": "AP"}, {"M": "male", "F": "female"}
    viewed = [(row, views[str(row.get("view"))]) for row in rows if row.get("view") in views]
    sexed = [(row, sexes[str(row.get("sex"))]) for row in rows if row.get("sex") in sexes]
    return (
        [QaRow(row, text, view, is_closed=True, kind="PLANE") for row, view in viewed for text in _VIEWS],
        [QaRow(row, text, sex, is_closed=True) for row, sex in sexed for text in _SEXES],
    )
