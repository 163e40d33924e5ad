"""Labels of films, source by source, beside baselines that learnt from the same rows.

They are compared inside a source only: pooled over hospitals, the hospital would give the label away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adapters.files import Adapter
from foundation.errors import InvalidRequest
from training.evaluating.job import Job
from training.manifests.manifest import Row
from training.measuring.baselines import TITLES, SplitRows, run_baseline
from training.measuring.classified import classify
from training.measuring.report import Section
from training.measuring.scoring import Scored, questions_of, read_rows
from training.measuring.sections import Comparison, calibration, discrimination, subgroups


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
        sections += compare(job, source, rows, part, tuple(scored.scores))
    if not sections:
        raise InvalidRequest(
            f"split {job.split!r} has for no label of {adapter.card.name} ({', '.join(adapter.card.labels)}) "
            f"{job.options.min_count} films with it and as many without: give a manifest with these labels",
            param="manifest",
        )
    return sections


def compare(job: Job, source: str, rows: tuple[Row, ...], subject: Scored, labels: Sequence[str]) -> list[Section]:
    """Sections of one source; none where its labels cannot be asked."""
    questions = questions_of(rows, labels, job.options.min_count)
    if not questions:
        return []
    asked = [question.label for question in questions]
    job.log(f"{source}: {len(rows)} films, {', '.join(asked)}")
    baselines = [train_baseline(job, name, source, asked) for name in job.options.baselines if name in TITLES]
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


def train_baseline(job: Job, name: str, source: str, labels: Sequence[str]) -> Scored:
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


def by_source(rows: Sequence[Row]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """Places of the rows of each source, in order of first appearance; a manifest without sources is one."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(source_of(row), []).append(place)
    return {source: np.array(held, dtype=np.intp) for source, held in places.items()}


def source_of(row: Row) -> str:
    return str(row.get("source") or "films")
