"""Is the chat right, does it say what it was told, and does it look at the film at all?

right       closed questions against the truth, in pairs, one about a finding that is there and one about a finding that is
            not, so that always saying "yes" scores one half; on phantoms, where truth is exact, side and zone too
faithful    yes or no, findings, percentages and places of an answer against those stated beside it (`agreement.py`)
looking     the same questions on a blank film and on another one: an answer that stays rests on the question alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from foundation.phantom import make_phantom
from foundation.prompt import FindingState
from foundation.prompts import is_known, is_normal, terms
from training.evaluating.phantom_check import FIRST_SEED
from training.manifests.manifest import Row
from training.measuring import metrics
from training.measuring.metrics import PatientBootstrap, Statistic
from training.measuring.report import Measure, Section, Table
from training.measuring.scoring import Film
from training.pretraining.decoder.agreement import Agreement, agreement, sides_in, yes_or_no, zones_in

OPEN_QUESTION = "Describe the film."
VERSIONS = ("real", "blank", "shuffled")
BLANK_LEVEL = 128
CLAIMS = {"verdict": "yes or no", "findings": "findings named", "percents": "percentages", "places": "places"}


@dataclass(frozen=True)
class Answer:
    """What the model says, and what it rests on, if it tells: probabilities, and the findings as they were stated to it."""

    text: str
    findings: Mapping[str, float] = field(default_factory=dict)
    stated: tuple[FindingState, ...] = ()


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
    questions = [closed_questions(row, rows, seed + place) for place, row in enumerate(rows)]
    closed = {name: _ask(chat, shown, questions) for name, shown in versions.items()}
    told = [[(OPEN_QUESTION, answers["real"][place]), *closed["real"][place]] for place in range(len(rows))]
    return (
        _changes(rows, answers, draws),
        _closed_section(questions, closed, draws),
        *_faithful_section("Chat: does it say what was stated", told, draws, "films"),
    )


FAITHFUL_NOTE = (
    "Shares of the answers that make such a claim. Each is compared with the findings stated beside the answer, not with the "
    "truth: a wrong finding, faithfully told, agrees. Findings named: exactly those asked about or, in a description, exactly "
    "those present."
)


def _ask(
    chat: ChatModel, films: Sequence[Film], questions: Sequence[Sequence[ClosedQuestion]]
) -> list[list[tuple[str, Answer]]]:
    return [
        [(one.question, chat.answer(film, one.question)) for one in asked] for film, asked in zip(films, questions, strict=True)
    ]


def _faithful_section(
    title: str, told: Sequence[Sequence[tuple[str, Answer]]], draws: PatientBootstrap, source: str
) -> tuple[Section, ...]:
    """None where the model states no findings."""
    measures = tuple(_faithful(told, draws, source))
    return (Section(title, FAITHFUL_NOTE, measures, rows=("by",), columns=("name",)),) if measures else ()


def _faithful(told: Sequence[Sequence[tuple[str, Answer]]], draws: PatientBootstrap, source: str) -> list[Measure]:
    """told: of each film questions and answers."""
    found: list[list[Agreement]] = []
    for pairs in told:
        marks = [agreement(question, (), said.text, said.stated) for question, said in pairs if said.stated]
        found.append([mark for mark in marks if mark is not None])
    measures = []
    for by, kinds in (("closed questions", ("presence", "normal")), ("descriptions", ("describe",)), ("where", ("location",))):
        for claim, title in CLAIMS.items():
            values = [[getattr(mark, claim) for mark in marks if mark.kind in kinds] for marks in found]
            shares = [float(np.mean(known)) if (known := [v for v in one if v is not None]) else np.nan for one in values]
            if any(share == share for share in shares):
                measures.append(Measure(title, draws.estimate(_mean(shares)), by, films=len(told), source=source))
    honest = [[bool(mark.findings) for mark in marks if mark.kind == "not assessed"] for marks in found]
    shares = [float(np.mean(one)) if one else np.nan for one in honest]
    if any(share == share for share in shares):
        title, by = "says that it is not assessed", "what is not stated"
        measures.append(Measure(title, draws.estimate(_mean(shares)), by, films=len(told), source=source))
    return measures


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
    questions: Sequence[Sequence[ClosedQuestion]],
    answers: Mapping[str, Sequence[Sequence[tuple[str, Answer]]]],
    draws: PatientBootstrap,
) -> Section:
    measures = []
    for name in VERSIONS:
        hits = {True: np.full(len(questions), np.nan), False: np.full(len(questions), np.nan)}
        for place, (asked, told) in enumerate(zip(questions, answers[name], strict=True)):
            for one, (_, said) in zip(asked, told, strict=True):
                hits[one.is_true][place] = yes_or_no(said.text) is one.is_true
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


_MARKS = ("yes", "no", "side", "side, where told", "zone", "zone, where told")


def phantom_questions(chat: ChatModel, count: int, size: int, *, resamples: int, seed: int) -> tuple[Section, ...]:
    """Closed, location and open questions on `count` phantoms; the first two also on a blank film and on the next phantom."""
    phantoms = [make_phantom(FIRST_SEED + place, size) for place in range(count)]
    films = [np.repeat(phantom.film[..., None], 3, axis=-1) for phantom in phantoms]
    versions = {"real": films, "blank": [np.full_like(film, BLANK_LEVEL) for film in films], "shuffled": films[1:] + films[:1]}
    draws = PatientBootstrap([str(place) for place in range(count)], resamples, seed)
    marks = {name: {mark: np.full(count, np.nan) for mark in _MARKS} for name in VERSIONS}
    told: list[list[tuple[str, Answer]]] = []
    for place, phantom in enumerate(phantoms):
        asked = [one for one in phantom.questions() if one.kind in ("closed", "location")]
        for name in VERSIONS:
            said = [chat.answer(versions[name][place], one.question) for one in asked]
            right: dict[str, list[bool]] = {mark: [] for mark in _MARKS}
            for one, answer in zip(asked, said, strict=True):
                _mark(right, one.kind, one.answer, answer, one.question)
            for mark, values in right.items():
                marks[name][mark][place] = np.mean(values) if values else np.nan
            if name == "real":
                pairs = [(one.question, answer) for one, answer in zip(asked, said, strict=True)]
                told.append([*pairs, (OPEN_QUESTION, chat.answer(films[place], OPEN_QUESTION))])
    measures = []
    for name in VERSIONS:
        measures += _balanced(marks[name]["yes"], marks[name]["no"], draws, name, "phantoms")
        for title in _MARKS[2:]:
            measures.append(Measure(title, draws.estimate(_mean(marks[name][title])), name, films=count, source="phantoms"))
    note = (
        f"{count} phantoms, seeds from {FIRST_SEED}. Side and zone: the answer names exactly the true ones; where told: of the "
        "answers that name any. Closed questions about what the model says it does not assess (tubes, lines) are left out."
    )
    return (
        Section("Chat: questions on phantoms", note, tuple(measures), rows=("by",), columns=("name",)),
        *_faithful_section("Chat: does it say what was stated, on phantoms", told, draws, "phantoms"),
    )


def _mark(right: dict[str, list[bool]], kind: str, truth: str, answer: Answer, question: str) -> None:
    said = answer.text
    if kind == "closed":
        wanted, found = yes_or_no(truth), agreement(question, (), said, answer.stated)
        is_left_out = bool(answer.stated) and found is not None and found.kind == "not assessed" and bool(found.findings)
        if wanted is not None and not is_left_out:
            right["yes" if wanted else "no"].append(yes_or_no(said) is wanted)
        return
    for mark, names_in in (("side", sides_in), ("zone", zones_in)):
        if names_in(truth):
            right[mark].append(names_in(said) == names_in(truth))
            if names_in(said):
                right[f"{mark}, where told"].append(names_in(said) == names_in(truth))


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
