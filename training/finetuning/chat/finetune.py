"""Fine-tuning of the chat task: questions and answers about films to an adapter of the decoder.

    rows -> questions made from labels (`training/manifests/label_questions.py`)
         -> film cache -> patch tokens and stated findings of every view, blank and shuffle, once
         -> Loop (epoch by validation loss) -> answers on val and test beside base, majority and controls -> card

The prompts of training are those of serving, findings included; `stated.py` reads the films, `lessons.py` writes the
examples, `trainee.py` is what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from adapters.card import BaseRecord, Metric
from adapters.files import Adapter
from adapters.tasks.chat import TASK
from foundation.decoder import Decoder
from foundation.decoder_folder import DECODER_FOLDER
from foundation.errors import InvalidRequest, ManifestError
from training.augment import AugmentStrength
from training.finetuning.chat.films import shelve, shelve_alone
from training.finetuning.chat.lessons import Course, Shelf, TwinRecipe, false_premises
from training.finetuning.chat.scores import ChatScores, answer_all, majority, patients
from training.finetuning.chat.stated import FilmReader, open_findings
from training.finetuning.chat.trainee import AdaptedDecoder, ChatTrainee
from training.finetuning.job import FinetuneJob, FinetuneResult
from training.finetuning.recipe import GENTLE, PaceRecipe, RowsRecipe, TaskRecipe
from training.finetuning.report import write_report
from training.finetuning.trunk_cache import film_cache
from training.manifests.label_questions import choose_films, label_questions
from training.manifests.manifest import Manifest, Row
from training.manifests.qa import QaRow, has_questions, read_questions
from training.measuring.metrics import Floats, PatientBootstrap, Statistic, difference, weighted_mean


@dataclass(frozen=True)
class ChatDataRecipe(RowsRecipe):
    """closed: the share of draws that are closed questions. findings: the adapter whose findings the prompt states.

    evenness: within a kind of closed question, 1 draws yes as often as no, 0 as often as people answered so.
    """

    closed: float = 0.6
    evenness: float = 1.0
    findings: str = "cxr-findings"


@dataclass(frozen=True)
class MadeRecipe:
    """Questions made from the labels of training films that nobody asked about (`training/manifests/label_questions.py`).

    films, questions: how many; 0 films makes none. share: of the draws of real films that they are. present: the share of
    these questions that are about something the film has.
    """

    films: int = 0
    questions: int = 4000
    share: float = 0.5
    present: float = 0.5

    def __post_init__(self) -> None:
        if self.films < 0 or self.questions < 1 or not 0.0 < self.share < 1.0 or not 0.0 < self.present < 1.0:
            raise InvalidRequest(
                "made.films must be 0 or more, made.questions at least 1, made.share and made.present between 0 and 1.",
                param="made",
            )


@dataclass(frozen=True)
class ChatViewRecipe:
    """count: views of each training film, the first being the film itself; findings are read from each anew."""

    count: int = 4
    strength: AugmentStrength = field(default_factory=lambda: GENTLE)


@dataclass(frozen=True)
class ChatRecipe(TaskRecipe):
    task: str = TASK
    data: ChatDataRecipe = field(default_factory=ChatDataRecipe)
    made: MadeRecipe = field(default_factory=MadeRecipe)
    twins: TwinRecipe = field(default_factory=TwinRecipe)
    views: ChatViewRecipe = field(default_factory=ChatViewRecipe)
    training: PaceRecipe = field(default_factory=lambda: PaceRecipe(batch_size=32, lora_rate=1e-3))

    def __post_init__(self) -> None:
        for name in ("closed", "evenness"):
            if not 0.0 <= getattr(self.data, name) <= 1.0:
                raise InvalidRequest(f"data.{name} must lie from 0 to 1.", param=name)
        if self.views.count < 1:
            raise InvalidRequest("views.count must be at least 1: the film itself.", param="count")


Job = FinetuneJob[ChatRecipe]


def chat_rows(rows: Manifest, recipe: ChatRecipe) -> Manifest:
    """The rows that ask something, and the labelled training films that questions are made of, as many as the recipe says.

    A pair that is not whole is an error before anything is trained.
    """
    read_questions(rows.select(has_questions).rows)
    silent = [row for row in rows if row.split == "train" and not has_questions(row)]
    chosen = {row.id for row in choose_films(silent, recipe.made.films, recipe.seed)}
    return rows.select(lambda row: has_questions(row) or row.id in chosen)


def train_chat(job: Job) -> FinetuneResult:
    """Train, answer `val` and `test`, and write the adapter."""
    recipe, decoder = job.recipe, open_decoder(job.folder)
    pairs = {split: read_questions(job.rows.of(split)) for split, count in job.rows.counts.items() if count}
    for split in ("train", "val"):
        if split not in pairs:
            raise ManifestError(f"No row of split {split!r} asks anything; set `split` on some patients.", param="split")
    reader = FilmReader(cast(Any, job.backbone), open_findings(recipe.data.findings, cast(Any, job.backbone)))
    try:
        shelves = _shelves(job, reader)
    finally:
        reader.close()
    base = {split: _answers(decoder, pairs[split], shelves, "real") for split in pairs if split != "train"}
    course = course_of(recipe, pairs["train"], _silent(job))
    trainee = ChatTrainee(decoder, course, pairs["val"], shelves, recipe.training.batch_size)
    torch.manual_seed(recipe.seed)
    model = AdaptedDecoder(decoder, recipe.lora)
    config = replace(job.loop_config("loss"), is_higher_better=False)
    report = job.train(trainee, model, model.groups(recipe.training.lora_rate), config)
    job.settle(model.learnt())
    decoder.cpu()
    answers = {split: answers_to(decoder, pairs[split], shelves) for split in base}
    metrics = [
        metric
        for split, ours in answers.items()
        for metric in card_metrics(split, ours, base[split], ChatScores(pairs[split], majority(pairs[split], pairs["train"])))
    ]
    card = job.card(
        sorted({pair.kind.lower() for pair in pairs["train"]}),
        [row for split in ("train", "val") for row in job.rows.of(split)],
        head=reader.stated_by.to_head(),
        metrics=tuple(metrics),
    )
    card = replace(card, base=BaseRecord(card.base.name, card.base.fingerprint, decoder.fingerprint))
    card = job.write(Adapter(card, model.weights(), {}))
    write_report(job.out, card, report, {split: len(job.rows.of(split)) for split in pairs})
    scores = {split: float(np.nanmean(ours["real"].closed)) for split, ours in answers.items()}
    return FinetuneResult(job.out / recipe.name, card, report, scores, "closed accuracy")


def course_of(recipe: ChatRecipe, pairs: tuple[QaRow, ...], silent: Sequence[Row]) -> Course:
    """What is drawn from. silent: the films that questions are made of."""
    made, seed = recipe.made, recipe.seed
    return Course(
        pairs,
        recipe.views.count,
        recipe.twins,
        recipe.data.closed,
        seed,
        false_premises(pairs, seed),
        label_questions(silent, made.questions, seed, made.present) if silent else (),
        made.share,
        recipe.data.evenness,
    )


def open_decoder(folder: Path | None) -> Decoder:
    """The decoder of a checkpoint's folder. Raises InvalidRequest where there is none."""
    if folder is None or not (folder / DECODER_FOLDER / "config.json").is_file():
        raise InvalidRequest("This checkpoint has no decoder, so nothing can chat; give one that has.", param="checkpoint")
    return Decoder.load(folder)


def answers_to(decoder: Decoder, pairs: tuple[QaRow, ...], shelves: Mapping[str, Shelf]) -> dict[str, ChatScores]:
    """The answers on the film, on its blank and on its shuffle."""
    return {twin: _answers(decoder, pairs, shelves, twin) for twin in ("real", "blank", "shuffled")}


def card_metrics(split: str, ours: Mapping[str, ChatScores], base: ChatScores, common: ChatScores) -> Iterator[Metric]:
    """Closed accuracy beside the majority answer, the base decoder and its own controls; open answers beside the base."""
    real, blank, shuffled = ours["real"], ours["blank"], ours["shuffled"]
    draws = PatientBootstrap(patients(real.pairs), 1000)
    figures: list[tuple[str, Floats]] = [
        ("closed accuracy", real.closed),
        ("closed accuracy, majority answer", common.closed),
        ("closed accuracy, base decoder", base.closed),
        ("closed accuracy, blank film", blank.closed),
        ("closed accuracy, shuffled film", shuffled.closed),
        ("likelier of yes and no", real.lean),
        ("likelier of yes and no, blank film", blank.lean),
        ("likelier of yes and no, shuffled film", shuffled.lean),
        ("open token F1", real.token_f1),
        ("open token F1, base decoder", base.token_f1),
        ("open exact match", real.exact),
        ("open exact match, base decoder", base.exact),
        ("cannot tell", real.declined),
        ("cannot tell, blank film", blank.declined),
        ("cannot tell, shuffled film", shuffled.declined),
    ]
    for name, values in figures:
        yield from _metric(name, split, draws, mean_of(values), values)
    over = (("margin over the majority answer", common.closed), ("margin over its own blank film", blank.closed))
    for name, other in over:
        yield from _metric(name, split, draws, difference(mean_of(real.closed), mean_of(other)), real.closed)


def mean_of(values: Floats) -> Statistic:
    return lambda weights: weighted_mean(values, weights)


def _metric(name: str, split: str, draws: PatientBootstrap, statistic: Statistic, values: Floats) -> Iterator[Metric]:
    one = draws.estimate(statistic)
    if math.isfinite(one.value):
        low, high = (None if math.isnan(bound) else round(bound, 4) for bound in (one.low, one.high))
        yield Metric(name, "", split, round(one.value, 4), low, high, one.level, films=int((~np.isnan(values)).sum()))


def _answers(decoder: Decoder, pairs: tuple[QaRow, ...], shelves: Mapping[str, Shelf], twin: Any) -> ChatScores:
    return ChatScores(pairs, answer_all(decoder, pairs, [shelves[pair.film.id].of(twin) for pair in pairs]))


def _shelves(job: Job, reader: FilmReader) -> dict[str, Shelf]:
    """Every film by its row's id; only training films that people asked about have augmented views."""
    recipe = job.recipe
    shelves: dict[str, Shelf] = {}
    for split, count in job.rows.counts.items():
        if count:
            rows = [row for row in job.rows.of(split) if has_questions(row)]
            views = recipe.views.count if split == "train" else 1
            shelves |= shelve(rows, _films(job, rows), reader, views, recipe.views.strength, recipe.seed)
    silent = _silent(job)
    return shelves | (shelve_alone(silent, _films(job, silent), reader) if silent else {})


def _silent(job: Job) -> list[Row]:
    """The training films that nobody asked about; `chat_rows` chose them."""
    return [row for row in job.rows if not has_questions(row)]


def _films(job: Job, rows: Sequence[Row]) -> list[npt.NDArray[np.uint8]]:
    """(S, S, 3) each."""
    grey = film_cache([row.image for row in rows], job.backbone.contract, job.cache, is_quiet=job.is_quiet)
    return [np.repeat(film, 3 // film.shape[-1], axis=-1) for film in np.asarray(grey)]
