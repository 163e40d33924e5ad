"""Does the chat look at the film? Answers on the real film, on a blank one and on another patient's film.

An answer that stays the same without the film rests on the question alone. Closed questions are asked in pairs, one
about a finding that is there and one about a finding that is not, so that always saying "yes" scores one half.
On phantoms, where truth is exact, "which side" and "which zone" are scored too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from foundation.phantom import make_phantom
from foundation.prompts import is_known, is_normal, terms
from training import metrics
from training.manifest import Row
from training.metrics import PatientBootstrap, Statistic
from training.phantom_check import FIRST_SEED
from training.report import Measure, Section, Table
from training.scoring import Film

OPEN_QUESTION = "Describe the film."
VERSIONS = ("real", "blank", "shuffled")
BLANK_LEVEL = 128
_ZONES = {"upper": "upper", "middle": "middle", "mid": "middle", "lower": "lower"}


@dataclass(frozen=True)
class Answer:
    """What the model says, and the probabilities it rests on, if it gives any."""

    text: str
    findings: Mapping[str, float] = field(default_factory=dict)


class ChatModel(Protocol):
    """Anything that answers a question about a film (S, S, 3) uint8; greedy, so that the same film says the same."""

    def answer(self, film: Film, question: str) -> Answer: ...


@dataclass(frozen=True)
class ClosedQuestion:
    question: str
    is_true: bool
    finding: str


def reliance_sections(
    chat: ChatModel, rows: Sequence[Row], films: Sequence[Film], *, resamples: int, seed: int
) -> tuple[Section, ...]:
    """The open question and one pair of closed ones on each film, its blank and a stranger's film."""
    strangers = other_films(rows)
    versions = {
        "real": list(films),
        "blank": [np.full_like(film, BLANK_LEVEL) for film in films],
        "shuffled": [films[place] for place in strangers],
    }
    draws = PatientBootstrap([row.patient_id for row in rows], resamples, seed)
    answers = {name: [chat.answer(film, OPEN_QUESTION) for film in shown] for name, shown in versions.items()}
    return (
        _changes(rows, answers, draws),
        _closed_section(chat, rows, versions, draws, seed),
    )


def choose_films(rows: Sequence[Row], count: int, seed: int) -> tuple[Row, ...]:
    """One film a patient, half of them with findings where there are as many."""
    random = np.random.default_rng(seed)
    first: dict[str, Row] = {}
    for place in random.permutation(len(rows)):
        first.setdefault(rows[place].patient_id, rows[place])
    found = [row for row in first.values() if any(is_known(label) for label in row.labels)]
    clear = [row for row in first.values() if row not in found]
    half = min(len(found), max(count // 2, count - len(clear)))
    chosen = found[:half] + clear[: count - half]
    return tuple(sorted(chosen, key=lambda row: row.id))


def other_films(rows: Sequence[Row]) -> list[int]:
    """For each film the place of another patient's, one with other labels where there is one."""
    count = len(rows)
    places = []
    for own, row in enumerate(rows):
        others = [(own + step) % count for step in range(1, count)]
        strangers = [place for place in others if rows[place].patient_id != row.patient_id] or others or [own]
        places.append(next((p for p in strangers if set(rows[p].labels) != set(row.labels)), strangers[0]))
    return places


def _changes(rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]], draws: PatientBootstrap) -> Section:
    measures = []
    for name in VERSIONS[1:]:
        pairs = list(zip(answers["real"], answers[name], strict=True))
        changed = [first.text.strip() != second.text.strip() for first, second in pairs]
        moved = [_largest_move(first, second) for first, second in pairs]
        measures.append(Measure("answer changed", draws.estimate(_mean(changed)), name, "open question", films=len(rows)))
        measures.append(Measure("largest move", draws.estimate(_mean(moved)), name, "probabilities", films=len(rows)))
    table = Table(
        ("film", "labels", *VERSIONS),
        tuple(
            (row.id, ", ".join(row.labels), *(answers[name][place].text for name in VERSIONS)) for place, row in enumerate(rows)
        ),
    )
    note = (
        f'"{OPEN_QUESTION}" on {len(rows)} films, on a blank film and on another patient\'s film. '
        "Largest move: of any finding's probability, averaged over films."
    )
    return Section("Chat: does the answer change with the film", note, tuple(measures), columns=("name", "by"), tables=(table,))


def _largest_move(first: Answer, second: Answer) -> float:
    names = set(first.findings) & set(second.findings)
    return max((abs(first.findings[name] - second.findings[name]) for name in names), default=float("nan"))


def _closed_section(
    chat: ChatModel,
    rows: Sequence[Row],
    versions: Mapping[str, Sequence[Film]],
    draws: PatientBootstrap,
    seed: int,
) -> Section:
    asked = [closed_questions(row, rows, seed + place) for place, row in enumerate(rows)]
    measures = []
    for name in VERSIONS:
        hits = {True: np.full(len(rows), np.nan), False: np.full(len(rows), np.nan)}
        for place, (film, questions) in enumerate(zip(versions[name], asked, strict=True)):
            for one in questions:
                hits[one.is_true][place] = yes_or_no(chat.answer(film, one.question).text) is one.is_true
        measures += _balanced(hits[True], hits[False], draws, name, "films")
    note = "Balanced: the mean of saying yes to what is there and no to what is not; 0.5 is chance."
    return Section("Chat: closed questions", note, tuple(measures), rows=("by",), columns=("name",))


def closed_questions(row: Row, rows: Sequence[Row], seed: int) -> tuple[ClosedQuestion, ...]:
    """One finding that the row's labels name, if there is one, and one that they do not."""
    random = np.random.default_rng(seed)
    vocabulary = sorted({label for other in rows for label in other.labels if is_known(label) and not is_normal(label)})
    asked = []
    for is_true in (True, False):
        candidates = [label for label in vocabulary if (label in row.labels) == is_true]
        if candidates:
            label = candidates[int(random.integers(len(candidates)))]
            asked.append(ClosedQuestion(f"Is there {terms(label)[0]}?", is_true, label))
    return tuple(asked)


# --- phantoms --------------------------------------------------------------------------------------------------------


def phantom_questions(chat: ChatModel, count: int, size: int, *, resamples: int, seed: int) -> Section:
    """Closed and location questions on `count` phantoms, on the film and on a blank one."""
    shown = ("real", "blank")
    yes, no, side, zone = ({name: np.full(count, np.nan) for name in shown} for _ in range(4))
    for place in range(count):
        phantom = make_phantom(FIRST_SEED + place, size)
        film = np.repeat(phantom.film[..., None], 3, axis=-1)
        for name, picture in (("real", film), ("blank", np.full_like(film, BLANK_LEVEL))):
            right: dict[str, list[bool]] = {"yes": [], "no": [], "side": [], "zone": []}
            for one in phantom.questions():
                if one.kind in ("closed", "location"):
                    _mark(right, one.kind, one.answer, chat.answer(picture, one.question).text)
            for target, key in ((yes, "yes"), (no, "no"), (side, "side"), (zone, "zone")):
                target[name][place] = np.mean(right[key]) if right[key] else np.nan
    draws = PatientBootstrap([str(place) for place in range(count)], resamples, seed)
    measures = []
    for name in shown:
        measures += _balanced(yes[name], no[name], draws, name, "phantoms")
        for title, values in (("side", side), ("zone", zone)):
            measures.append(Measure(title, draws.estimate(_mean(values[name])), name, films=count, source="phantoms"))
    note = f"{count} phantoms, seeds from {FIRST_SEED}. Side and zone: the answer names exactly the true ones."
    return Section("Chat: questions on phantoms", note, tuple(measures), rows=("by",), columns=("name",))


def _mark(right: dict[str, list[bool]], kind: str, truth: str, said: str) -> None:
    if kind == "closed":
        wanted = yes_or_no(truth)
        if wanted is not None:
            right["yes" if wanted else "no"].append(yes_or_no(said) is wanted)
        return
    if sides_in(truth):
        right["side"].append(sides_in(said) == sides_in(truth))
    if zones_in(truth):
        right["zone"].append(zones_in(said) == zones_in(truth))


def yes_or_no(text: str) -> bool | None:
    """What an answer says by its first word; None where it says neither."""
    first = re.match(r"\W*(yes|no)\b", text.lower())
    return None if first is None else first[1] == "yes"


def sides_in(text: str) -> frozenset[str]:
    words = set(re.findall(r"[a-z]+", text.lower()))
    if words & {"bilateral", "bilaterally", "both"}:
        return frozenset({"left", "right"})
    return frozenset(words & {"left", "right"})


def zones_in(text: str) -> frozenset[str]:
    return frozenset(_ZONES[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _ZONES)


def _balanced(yes: metrics.Floats, no: metrics.Floats, draws: PatientBootstrap, by: str, source: str) -> list[Measure]:
    films = len(yes)
    parts: list[tuple[str, Statistic]] = [("yes to what is there", _mean(yes)), ("no to what is not", _mean(no))]
    parts.insert(0, ("balanced accuracy", _half(parts[0][1], parts[1][1])))
    return [Measure(name, draws.estimate(of), by, films=films, source=source) for name, of in parts]


def _half(first: Statistic, second: Statistic) -> Statistic:
    """Undefined where either is, unlike a mean over what is known."""
    return lambda weights: (first(weights) + second(weights)) / 2


def _mean(values: Sequence[float] | Sequence[bool] | metrics.Floats) -> Callable[[metrics.Floats], metrics.Floats]:
    return lambda weights: metrics.weighted_mean(np.asarray(values, dtype=np.float64), weights)
