"""Evaluation: what a subject is worth on a split, with intervals, beside baselines on the same rows.

    evaluate("zero-shot", "manifest.jsonl", where="source=nih_cxr14", report_dir="reports/zero-shot")
    evaluate("cxr-findings", "manifest.jsonl", where="source=nih_cxr14", options=Options(baselines=("hog", "cnn")))
    evaluate("chat", "manifest.jsonl", chat=open_chat, report_dir="reports/chat")

| subject                  | what is measured                                                                        |
|--------------------------|-----------------------------------------------------------------------------------------|
| zero-shot                | findings by prompt pairs, retrieval of readings, findings and sides on phantoms, the gate |
| an adapter's name, folder | by its task: labels (AUROC, calibration, its thresholds), masks, anomalies, questions  |
| chat                     | whether answers are right, say what was stated, and follow the film; films and phantoms |

Each kind of subject has a file: `zero_shot_check.py`, `adapter_check.py` (with `label_check.py`), `chat_check.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from adapters.store import AdapterStore
from foundation.checkpoint import Checkpoint, open_checkpoint
from foundation.errors import InvalidRequest
from training.evaluating.about import about
from training.evaluating.adapter_check import adapter_sections, open_adapter
from training.evaluating.box_check import boxed_section, boxed_sides
from training.evaluating.chat_check import ChatModel, choose_films, phantom_questions, reliance_sections
from training.evaluating.job import Job, Log, Options
from training.evaluating.zero_shot_check import ZERO_SHOT, zero_shot_sections
from training.manifests.manifest import Where, load_manifest
from training.measuring.report import Report, Section, write_report
from training.measuring.scoring import read_rows

CHAT = "chat"
ChatOpener: TypeAlias = Callable[[Checkpoint], ChatModel]


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
    report = Report(title, about(job, adapter, where, command), tuple(sections))
    if report_dir is not None:
        log(f"report: {write_report(report, report_dir)}")
    return report


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
