"""A backbone without an adapter: findings by prompt pairs, retrieval, phantoms and the gate."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from foundation.gate import Gate
from training.evaluating.gate_check import gate_section
from training.evaluating.job import Job
from training.evaluating.label_check import by_source, compare
from training.evaluating.phantom_check import phantom_section
from training.evaluating.retrieval import retrieval_section
from training.manifests.manifest import Row
from training.measuring.report import Section
from training.measuring.scoring import Scored, embed_rows, labels_to_ask, zero_shot

ZERO_SHOT = "zero-shot"


def zero_shot_sections(job: Job) -> list[Section]:
    """Every film is embedded once; findings and retrieval share the embeddings."""
    sections: list[Section] = []
    embeddings = _embed(job, job.rows)
    for source, places in by_source(job.rows).items():
        rows = tuple(job.rows[place] for place in places)
        labels = labels_to_ask(rows)
        scored = zero_shot(job.backbone, embeddings[places], labels) if labels else Scored(ZERO_SHOT, {})
        sections += compare(job, source, rows, scored, labels)
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
