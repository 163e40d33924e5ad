"""What the figures of an evaluation rest on, for the head of its report: command, checkpoint, adapter, rows, hardware."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from adapters.files import Adapter
from foundation.device import multiplies_bf16
from foundation.prompts import is_normal
from training.evaluating.job import Job
from training.manifests.manifest import Manifest, Where
from training.measuring.report import hardware


def about(job: Job, adapter: Adapter | None, where: Where, command: str) -> Mapping[str, Any]:
    """command: as it was typed, "" where nobody typed it."""
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
        "precision": "bfloat16" if options.use_bfloat16 and multiplies_bf16(options.device) else "float32",
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
