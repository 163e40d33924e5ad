"""Sections of a report on a chat adapter: what its answers are worth, and how much of it the picture is.

Closed answers stand beside the answer commonest in training (by kind of question), the base decoder, and the adapter's
own answers to a blank and to a shuffled film. As the adapter is taught to decline those, "likelier of yes and no" says
what it would have answered all the same: that is the control which declining cannot win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adapters.files import Adapter
from adapters.lora import load_weights, remove_lora
from adapters.store import AdapterStore
from foundation.decoder import Decoder
from foundation.errors import InvalidRequest
from training.finetuning.chat.films import shelve
from training.finetuning.chat.finetune import mean_of, open_decoder
from training.finetuning.chat.lessons import Shelf, false_premises
from training.finetuning.chat.scores import ChatScores, answer_all, kinds_of, majority, patients
from training.finetuning.chat.stated import FilmReader, open_findings
from training.manifests.manifest import Manifest
from training.manifests.qa import QaRow, has_questions, read_questions
from training.measuring.metrics import Floats, PatientBootstrap, difference
from training.measuring.report import Measure, Section, Table
from training.measuring.scoring import read_rows

if TYPE_CHECKING:
    from foundation.backbone import Backbone

ADAPTER, BASE, MAJORITY, BLANK, SHUFFLED = "adapter", "base decoder", "majority answer", "blank film", "shuffled film"
SHOWN = 60


@dataclass(frozen=True, eq=False)
class Questions:
    """What one report on a chat adapter has open. folder: the checkpoint's."""

    backbone: Backbone
    adapter: Adapter
    manifest: Manifest
    split: str
    folder: Path
    resamples: int
    seed: int
    min_count: int
    store: AdapterStore | None = None


def question_sections(asked: Questions) -> list[Section]:
    """Closed, by likelihood, open, declined, and the answers themselves."""
    rows = [row for row in asked.manifest.of(asked.split) if has_questions(row)]
    pairs = read_questions(rows)
    if not pairs:
        raise InvalidRequest(f"no row of split {asked.split!r} has questions: give a manifest with `qa`", param="manifest")
    decoder = open_decoder(asked.folder)
    shelves = _shelves(asked, rows)
    answers = {BASE: _ask(decoder, pairs, shelves, "real")}
    load_weights(decoder.model, asked.adapter.lora)
    try:
        for name, twin in ((ADAPTER, "real"), (BLANK, "blank"), (SHUFFLED, "shuffled")):
            answers[name] = _ask(decoder, pairs, shelves, twin)
        premises = _ask(decoder, _premises(pairs, asked.seed), shelves, "real")
    finally:
        remove_lora(decoder.model)
    answers[MAJORITY] = ChatScores(pairs, majority(pairs, _learnt(asked, pairs)))
    return [_closed(asked, pairs, answers), _lean(asked, pairs, answers), _open(asked, pairs, answers),
            _declined(asked, pairs, answers, premises), _shown(pairs, answers)]  # fmt: skip


def _shelves(asked: Questions, rows: Sequence[object]) -> dict[str, Shelf]:
    findings = open_findings(str(asked.adapter.card.head["findings"]), asked.backbone, asked.store)
    reader = FilmReader(asked.backbone, findings)
    try:
        return shelve(rows, list(read_rows(rows, asked.backbone.contract)), reader)  # type: ignore[arg-type]
    finally:
        reader.close()


def _ask(decoder: Decoder, pairs: tuple[QaRow, ...], shelves: Mapping[str, Shelf], twin: str) -> ChatScores:
    return ChatScores(pairs, answer_all(decoder, pairs, [shelves[pair.film.id].of(twin) for pair in pairs]))  # type: ignore[arg-type]


def _premises(pairs: Sequence[QaRow], seed: int) -> tuple[QaRow, ...]:
    return tuple(QaRow(one.film.film, one.question, one.answer, is_closed=False) for one in false_premises(pairs, seed))


def _learnt(asked: Questions, pairs: tuple[QaRow, ...]) -> tuple[QaRow, ...]:
    """The training questions of the same manifest; the split itself where it has none, which flatters the majority."""
    if not asked.manifest.counts["train"]:
        return pairs
    return read_questions([row for row in asked.manifest.of("train") if has_questions(row)])


def _draws(asked: Questions, pairs: Sequence[QaRow]) -> PatientBootstrap:
    return PatientBootstrap(patients(pairs), asked.resamples, asked.seed)


def _closed(asked: Questions, pairs: tuple[QaRow, ...], answers: Mapping[str, ChatScores]) -> Section:
    draws, measures = _draws(asked, pairs), []
    closed = {name: scores.closed for name, scores in answers.items()}
    is_closed = np.array([pair.is_closed for pair in pairs])
    names = (ADAPTER, MAJORITY, BASE, BLANK, SHUFFLED)
    for kind, among in kinds_of([pair for pair in pairs if pair.is_closed], asked.min_count).items():
        chosen = np.zeros(len(pairs), dtype=bool)
        chosen[np.flatnonzero(is_closed)[among]] = True
        values = {name: np.where(chosen, closed[name], np.nan) for name in names}
        count = int(chosen.sum())
        measures += [
            Measure("closed accuracy", draws.estimate(mean_of(values[name])), name, kind, films=count) for name in names
        ]
        for name in (MAJORITY, BLANK):
            gain = difference(mean_of(values[ADAPTER]), mean_of(values[name]))
            measures.append(Measure("margin over", draws.estimate(gain), name, kind, films=count))
    note = (
        f"{int(is_closed.sum())} questions about {len(set(patients(pairs)))} patients; intervals over patients; `films` counts "
        "questions. The majority answer is that of the training questions of the same kind. Scored without the gate."
    )
    return Section("Chat: closed questions", note, tuple(measures))


def _lean(asked: Questions, pairs: tuple[QaRow, ...], answers: Mapping[str, ChatScores]) -> Section:
    draws = _draws(asked, pairs)
    names = (ADAPTER, BASE, BLANK, SHUFFLED)
    measures = [_measure("likelier of yes and no", draws, answers[name].lean, name) for name in names]
    for name in (BLANK, SHUFFLED):
        gain = difference(mean_of(answers[ADAPTER].lean), mean_of(answers[name].lean))
        measures.append(Measure("margin over", draws.estimate(gain), name, films=measures[0].films))
    note = "Which of yes and no is likelier as the first word, whatever is said: an answer that declines is compared too."
    return Section("Chat: yes or no by likelihood", note, tuple(measures), rows=("by",), columns=("name",))


def _open(asked: Questions, pairs: tuple[QaRow, ...], answers: Mapping[str, ChatScores]) -> Section:
    draws, measures = _draws(asked, pairs), []
    for name in (ADAPTER, BASE, BLANK, SHUFFLED):
        measures.append(_measure("token F1", draws, answers[name].token_f1, name))
        measures.append(_measure("exact match", draws, answers[name].exact, name))
    note = "Open questions, compared word by word with the clinicians' answers; articles and punctuation do not count."
    return Section("Chat: open questions", note, tuple(measures), rows=("by",), columns=("name",))


def _declined(asked: Questions, pairs: tuple[QaRow, ...], answers: Mapping[str, ChatScores], premises: ChatScores) -> Section:
    draws = _draws(asked, pairs)
    measures = [_measure("cannot tell", draws, answers[name].declined, name) for name in (ADAPTER, BLANK, SHUFFLED)]
    if premises.pairs:
        own = _draws(asked, premises.pairs)
        measures.append(_measure("cannot tell", own, premises.declined, "false premise"))
    note = "How often the answer is that it cannot be told: seldom on real films, mostly on the others, would be right."
    return Section("Chat: declining", note, tuple(measures), rows=("by",), columns=("name",))


def _measure(name: str, draws: PatientBootstrap, values: Floats, by: str) -> Measure:
    return Measure(name, draws.estimate(mean_of(values)), by, films=int((~np.isnan(values)).sum()))


def _shown(pairs: tuple[QaRow, ...], answers: Mapping[str, ChatScores]) -> Section:
    names = (ADAPTER, BASE, BLANK)
    lines = tuple(
        (pair.film.id, pair.question, pair.answer, *(answers[name].results[place].text for name in names))
        for place, pair in enumerate(pairs[:SHOWN])
    )
    return Section("Chat: answers", tables=(Table(("film", "question", "truth", *names), lines),))
