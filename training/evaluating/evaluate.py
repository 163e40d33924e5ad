"""Evaluation: what a subject is worth on a split, with intervals, beside baselines on the same rows.

    evaluate("zero-shot", "manifest.jsonl", where="source=nih_cxr14", report_dir="reports/zero-shot")
    evaluate("cxr-findings", "manifest.jsonl", where="source=nih_cxr14", options=Options(baselines=("hog", "cnn")))
    evaluate("chat", "manifest.jsonl", chat=open_chat, report_dir="reports/chat")

| subject                  | what is measured                                                                        |
|--------------------------|-----------------------------------------------------------------------------------------|
| zero-shot                | findings by prompt pairs, retrieval of readings, findings and sides on phantoms, the gate |
| an adapter's name, folder | by its task: labels (AUROC, calibration, its thresholds), masks, anomalies, questions  |
| chat                     | whether answers are right, say what was stated, and follow the film; films and phantoms |

Labels are compared inside a source only: pooled over hospitals, the hospital would give the label away.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from adapters.card import read_card
from adapters.files import Adapter, read_adapter
from adapters.store import AdapterStore
from adapters.tasks import anomaly, classification, fusion, segmentation
from adapters.tasks import chat as chat_task
from foundation.checkpoint import Checkpoint, open_checkpoint
from foundation.errors import InvalidRequest
from foundation.gate import Gate
from foundation.prompts import is_normal
from training.evaluating.box_check import boxed_section, boxed_sides
from training.evaluating.chat_check import ChatModel, choose_films, phantom_questions, reliance_sections
from training.evaluating.fusion_check import fusion_sections
from training.evaluating.gate_check import gate_section
from training.evaluating.phantom_check import phantom_section
from training.evaluating.retrieval import retrieval_section
from training.finetuning.anomaly.finetune import AnomalyRecipe, is_asked
from training.finetuning.anomaly.report import Anomaly, anomaly_sections
from training.finetuning.chat.finetune import open_decoder
from training.finetuning.chat.report import Questions, question_sections
from training.finetuning.segmentation.asked import Segmentation
from training.finetuning.segmentation.report import segmentation_sections
from training.manifests.manifest import Manifest, Row, Where, load_manifest
from training.measuring.asked import Asked
from training.measuring.baselines import TITLES, SplitRows, run_baseline
from training.measuring.classified import classify
from training.measuring.metrics import PatientBootstrap
from training.measuring.report import Report, Section, hardware, write_report
from training.measuring.scoring import (
    Backbone,
    Running,
    Scored,
    Scores,
    embed_rows,
    labels_to_ask,
    questions_of,
    read_rows,
    zero_shot,
)
from training.measuring.sections import Comparison, calibration, discrimination, subgroups
from training.recipe import fill

ZERO_SHOT, CHAT = "zero-shot", "chat"
UNET = "unet"  # the baseline of masks
Log: TypeAlias = Callable[[str], None]
ChatOpener: TypeAlias = Callable[[Checkpoint], ChatModel]


@dataclass(frozen=True)
class Options:
    """How to evaluate. `baselines`: "hog", "cnn", for masks "unet"; `min_count`: films a label needs with and without it."""

    baselines: tuple[str, ...] = ()
    baseline_cache: str = "runs/baselines"
    baseline_time_limit_s: float | None = None
    phantoms: int = 500
    chat_films: int = 50
    chat_phantoms: int = 100
    resamples: int = 1000
    min_count: int = 10
    seed: int = 0
    batch_size: int = 32
    use_bfloat16: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in (*TITLES, UNET):
                raise InvalidRequest(f"unknown baseline {name!r}: known are {', '.join((*TITLES, UNET))}", param="baselines")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value < (1 if item.name in ("resamples", "min_count", "batch_size") else 0):
                raise InvalidRequest(f"{item.name} is {value}: give a larger number", param=item.name)

    @property
    def running(self) -> Running:
        return Running(self.batch_size, self.device, self.use_bfloat16)


@dataclass(frozen=True, eq=False)
class Job:
    """What one evaluation has open: the checkpoint, the rows, the options."""

    checkpoint: Checkpoint
    manifest: Manifest | None
    split: str
    options: Options
    log: Log

    @property
    def backbone(self) -> Backbone:
        return self.checkpoint.backbone

    @property
    def rows(self) -> tuple[Row, ...]:
        return () if self.manifest is None else self.manifest.of(self.split)

    def draws(self, rows: Sequence[Row]) -> PatientBootstrap:
        return PatientBootstrap([row.patient_id for row in rows], self.options.resamples, self.options.seed)


def evaluate(
    subject: str,
    manifest: str | Path | None,
    split: str = "test",
    where: Where = None,
    report_dir: str | Path | None = None,
    checkpoint: str | Checkpoint = "bundled",
    options: Options | None = None,
    *,
    store: AdapterStore | None = None,
    chat: ChatOpener | None = None,
    command: str = "",
    log: Log = print,
) -> Report:
    """Measure, write the report where `report_dir` says, and return it.

    subject: "zero-shot", "chat", an adapter's name in `store`, or its folder. manifest None: phantoms only.
    chat: opens the chat model of a checkpoint; needed for "chat" alone. Raises InvalidRequest, ManifestError and the
    errors of opening a checkpoint or an adapter.
    """
    options = options or Options()
    rows = None if manifest is None else load_manifest(manifest, where)
    opened = open_checkpoint(checkpoint, device=options.device) if isinstance(checkpoint, str) else checkpoint
    job = Job(opened, rows, split, options, log)
    adapter = None if subject in (ZERO_SHOT, CHAT) else open_adapter(subject, job.backbone, store, opened.folder)
    if adapter is not None:
        sections = adapter_sections(job, adapter)
    else:
        sections = zero_shot_sections(job) if subject == ZERO_SHOT else chat_sections(job, chat)
    if not sections:
        raise InvalidRequest("there is nothing to measure: give a manifest with labels, or ask for phantoms")
    title = f"Evaluation of {subject if adapter is None else adapter.card.name}"
    report = Report(title, _about(job, adapter, where, command), tuple(sections))
    if report_dir is not None:
        log(f"report: {write_report(report, report_dir)}")
    return report


def open_adapter(
    subject: str, backbone: Backbone, store: AdapterStore | None = None, checkpoint: Path | None = None
) -> Adapter:
    """An adapter by its name in the store, or by the path of its folder. checkpoint: where a chat adapter's decoder lies."""
    folder = Path(subject)
    if not (folder / "card.json").is_file():
        folder = (store or AdapterStore.default()).get(subject).folder
    if read_card(folder).task == chat_task.TASK:
        return chat_task.open_chat_adapter(folder, backbone, open_decoder(checkpoint))
    return read_adapter(folder, backbone)


# --- zero-shot -------------------------------------------------------------------------------------------------------


def zero_shot_sections(job: Job) -> list[Section]:
    """Every film is embedded once; findings and retrieval share the embeddings."""
    sections: list[Section] = []
    embeddings = _embed(job, job.rows)
    for source, places in by_source(job.rows).items():
        rows = tuple(job.rows[place] for place in places)
        labels = labels_to_ask(rows)
        scored = zero_shot(job.backbone, embeddings[places], labels) if labels else Scored(ZERO_SHOT, {})
        sections += _compare(job, source, rows, scored, labels)
        sections += retrieval_section(job.backbone, source, rows, embeddings[places], job.draws(rows))
    if job.options.phantoms:
        job.log(f"phantoms: {job.options.phantoms}")
        options = job.options
        sections.append(phantom_section(job.backbone, options.phantoms, options.running, options.resamples, options.seed))
    gate = Gate.load(job.checkpoint.folder)
    if gate is not None and job.rows:
        job.log("the gate")
        sections.append(
            gate_section(job.backbone, gate, job.rows, resamples=job.options.resamples, seed=job.options.seed)  # type: ignore[arg-type]
        )
    return sections


def _embed(job: Job, rows: Sequence[Row]) -> Tensor:
    job.log(f"embedding {len(rows)} films of split {job.split!r}")
    if not rows:
        return Tensor()
    return embed_rows(job.backbone, rows, job.options.running)


# --- adapters --------------------------------------------------------------------------------------------------------


def adapter_sections(job: Job, adapter: Adapter) -> list[Section]:
    """What the adapter's task is measured by, source by source."""
    if job.manifest is None:
        raise InvalidRequest("an adapter is evaluated on labelled films: give a manifest", param="manifest")
    task, options = adapter.card.task, job.options
    if task == classification.TASK:
        return label_sections(job, adapter)
    job.log(f"running {adapter.card.name} on split {job.split!r}")
    opened = (job.backbone, adapter, job.manifest, job.split, options.running, options.resamples, options.seed)
    if task == segmentation.TASK:
        cache = Path(options.baseline_cache) if UNET in options.baselines else None
        return segmentation_sections(Segmentation(*opened, options.min_count, cache, job.log))
    if task == anomaly.TASK:
        return anomaly_sections(Anomaly(*opened, options.min_count, lambda source: _supervised(job, adapter, source)))
    if task == chat_task.TASK:
        asked = (job.checkpoint.backbone, adapter, job.manifest, job.split, job.checkpoint.folder)
        return question_sections(Questions(*asked, options.resamples, options.seed, options.min_count))
    if task == fusion.TASK:
        return fusion_sections(Asked(*opened))
    raise InvalidRequest(f"adapters for {task} are not evaluated here", param="subject")


def label_sections(job: Job, adapter: Adapter) -> list[Section]:
    """A classification adapter's labels, source by source."""
    job.log(f"classifying {len(job.rows)} films of split {job.split!r} with {adapter.card.name}")
    films = read_rows(job.rows, job.backbone.contract)
    scored = classify(job.backbone, adapter, films, job.options.running)
    sections: list[Section] = []
    for source, places in by_source(job.rows).items():
        rows = tuple(job.rows[place] for place in places)
        part = Scored(
            scored.by,
            {label: score[places] for label, score in scored.scores.items()},
            scored.is_probability,
            scored.thresholds,
        )
        sections += _compare(job, source, rows, part, tuple(scored.scores))
    if not sections:
        raise InvalidRequest(
            f"split {job.split!r} has for no label of {adapter.card.name} ({', '.join(adapter.card.labels)}) "
            f"{job.options.min_count} films with it and as many without: give a manifest with these labels",
            param="manifest",
        )
    return sections


def _compare(job: Job, source: str, rows: tuple[Row, ...], subject: Scored, labels: Sequence[str]) -> list[Section]:
    """Sections of one source; none where its labels cannot be asked."""
    questions = questions_of(rows, labels, job.options.min_count)
    if not questions:
        return []
    asked = [question.label for question in questions]
    job.log(f"{source}: {len(rows)} films, {', '.join(asked)}")
    baselines = [_baseline(job, name, source, asked) for name in job.options.baselines if name in TITLES]
    comparison = Comparison(
        source,
        rows,
        questions,
        (subject, *baselines),
        job.options.resamples,
        job.options.seed,
        job.options.min_count,
    )
    calibrated = calibration(comparison)
    return [discrimination(comparison), *([calibrated] if calibrated else []), *subgroups(comparison)]


def _baseline(job: Job, name: str, source: str, labels: Sequence[str]) -> Scored:
    """A baseline trained on this source's `train` rows under the same filter, scored on the same films."""
    assert job.manifest is not None
    own = job.manifest.select(lambda row: source_of(row) == source)
    options = job.options
    found = run_baseline(
        name,
        SplitRows(own.of("train"), own.of("val"), own.of(job.split)),
        labels,
        Path(options.baseline_cache),
        seed=options.seed,
        time_limit_s=options.baseline_time_limit_s,
        report=job.log,
    )
    return Scored(name, {label: found.of(label) for label in labels}, is_probability=True, note=found.note)


def _supervised(job: Job, adapter: Adapter, source: str) -> dict[str, Scores]:
    """The baselines that learn "normal" as a label, on the rows that the adapter is asked about; larger is stranger."""
    assert job.manifest is not None
    recipe = fill(AnomalyRecipe, adapter.card.recipe, "the card's recipe")
    asked = replace(job, manifest=job.manifest.select(lambda row: is_asked(row, recipe)))
    normal = recipe.data.normal
    names = [name for name in job.options.baselines if name in TITLES]
    return {TITLES[name]: 1.0 - _baseline(asked, name, source, [normal]).scores[normal] for name in names}


# --- chat ------------------------------------------------------------------------------------------------------------


def chat_sections(job: Job, opener: ChatOpener | None) -> list[Section]:
    """Real, blank and strangers' films; then phantoms."""
    if opener is None:
        raise InvalidRequest("this checkpoint has no chat model here: give one that has a decoder", param="checkpoint")
    chat, options = opener(job.checkpoint), job.options
    sections: list[Section] = []
    if job.rows and options.chat_films:
        rows = choose_films(job.rows, options.chat_films, options.seed)
        job.log(f"asking about {len(rows)} films")
        films = list(read_rows(rows, job.backbone.contract))
        sections += reliance_sections(chat, rows, films, resamples=options.resamples, seed=options.seed)
    boxed = [row for row in job.rows if boxed_sides(row)] if options.chat_films else []
    if boxed:
        job.log(f"asking where, on {len(boxed)} films with boxes")
        seen = list(read_rows(boxed, job.backbone.contract))
        sections += boxed_section(chat, boxed, seen, resamples=options.resamples, seed=options.seed)
    if options.chat_phantoms:
        job.log(f"asking about {options.chat_phantoms} phantoms")
        size = job.backbone.contract.size
        sections += phantom_questions(chat, options.chat_phantoms, size, resamples=options.resamples, seed=options.seed)
    return sections


# --- what it rests on ------------------------------------------------------------------------------------------------


def by_source(rows: Sequence[Row]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """Places of the rows of each source, in order of first appearance; a manifest without sources is one."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(source_of(row), []).append(place)
    return {source: np.array(held, dtype=np.intp) for source, held in places.items()}


def source_of(row: Row) -> str:
    return str(row.get("source") or "films")


def _about(job: Job, adapter: Adapter | None, where: Where, command: str) -> Mapping[str, Any]:
    options, passport = job.options, job.checkpoint.passport
    backbone = {"fingerprint": job.backbone.fingerprint, "licence": getattr(passport, "licence", "")}
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "checkpoint": {name: value for name, value in backbone.items() if value},
        "adapter": None if adapter is None else {"name": adapter.card.name, "digest": adapter.digest},
        "data": None if job.manifest is None else describe_data(job.manifest, job.split, where),
        "labels": _label_counts(job),
        "seed": options.seed,
        "bootstrap": f"{options.resamples} resamples of patients, 95 % percentile intervals",
        "hardware": hardware(),
        "precision": "bfloat16" if options.use_bfloat16 else "float32",
        "system": platform.platform(terse=True),
    }


def describe_data(manifest: Manifest, split: str, where: Where) -> Mapping[str, Any]:
    """Name, filter, counts, licences and digest of the rows: never a path of this machine."""
    rows = manifest.of(split)
    return {
        "manifest": manifest.path.name,
        "filter": "" if where is None else str(where),
        "split": split,
        "films": len(rows),
        "patients": len({row.patient_id for row in rows}),
        "licences": sorted({row.licence for row in rows if row.licence}),
        "rows digest": manifest.digest,
        "notes": list(manifest.notes),
    }


def _label_counts(job: Job) -> Mapping[str, int]:
    counts = Counter(label for row in job.rows for label in row.labels)
    return dict(sorted(counts.items(), key=lambda item: (not is_normal(item[0]), -item[1], item[0])))
