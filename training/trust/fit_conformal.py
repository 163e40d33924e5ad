"""Give an adapter that stands its conformal thresholds, and its card what they are worth. `vesalius finetune` does the same.

    python -m training.trust.fit_conformal runs/findings/cxr-findings --coverage 0.9
    python -m training.trust.fit_conformal adapters/library/cxr-findings --dry-run --report runs/conformal.md

Thresholds from `val`, figures on `test`, both through the whole tower: 1,850 films take about two minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from adapters.card import CARD, AdapterCard, Calibration, Metric
from adapters.files import Adapter, read_adapter
from adapters.tasks.classification import calibrate
from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from training.manifests.manifest import Row, load_manifest
from training.measuring.classified import classified
from training.measuring.metrics import Floats
from training.measuring.scoring import Running, read_rows
from training.trust.conformal import COVERAGE, LEAST, fit_conformal
from training.trust.trust_metrics import BY_PATIENT, MEAN, OF_SETS, Judged, is_of_sets, trust_metrics

MANIFEST = "../shared/data/chest/manifest.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.trust.fit_conformal", description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--manifest", type=Path, default=Path(MANIFEST))
    parser.add_argument("--coverage", type=float, default=COVERAGE)
    parser.add_argument("--dry-run", action="store_true", help="leave the card as it is")
    parser.add_argument("--report", type=Path, help="also write the table there")
    chosen = parser.parse_args()
    backbone = open_checkpoint(chosen.checkpoint).backbone
    adapter = read_adapter(chosen.adapter, backbone)
    card = with_conformal(backbone, adapter, load_manifest(chosen.manifest).rows, chosen.coverage)
    if not chosen.dry_run:
        (chosen.adapter / CARD).write_text(card.to_json(), encoding="utf-8")
    table = conformal_table(card)
    print(table)
    if chosen.report:
        chosen.report.write_text(table, encoding="utf-8")


def with_conformal(backbone: Backbone, adapter: Adapter, rows: Sequence[Row], coverage: float) -> AdapterCard:
    """The adapter's card with thresholds from the rows of `val` and figures from those of `test`."""
    return with_thresholds(adapter.card, *held_out(backbone, adapter, rows), coverage)


def with_thresholds(card: AdapterCard, val: Judged, test: Judged, coverage: float) -> AdapterCard:
    """The card with thresholds from its probabilities on `val`, and figures from those on `test`."""
    many = card.is_multi_label
    conformal = fit_conformal(val.probabilities, val.truth, val.patients, "val", is_multi_label=many, coverage=coverage)
    found = trust_metrics(test, conformal)
    replaced = {(metric.name, metric.split) for metric in found}
    kept = tuple(one for one in card.metrics if (one.name, one.split) not in replaced and not is_of_sets(one))
    return replace(card, conformal=conformal, metrics=kept + found)


def held_out(backbone: Backbone, adapter: Adapter, rows: Sequence[Row]) -> tuple[Judged, Judged]:
    """`val` and `test` of the sources that the adapter was trained on."""
    sources = {record.source for record in adapter.card.data}
    known = [row for row in rows if str(row.get("source", "")) in sources]
    val, test = (judged(backbone, adapter, [row for row in known if row.split == split], split) for split in ("val", "test"))
    return val, test


@torch.inference_mode()
def judged(backbone: Backbone, adapter: Adapter, rows: Sequence[Row], split: str) -> Judged:
    """The adapter's probabilities for the rows, before and after its calibration."""
    card = adapter.card
    results = list(classified(backbone, adapter, read_rows(rows, backbone.contract), Running()))
    logits = np.stack([result.logits for result in results])
    before: Floats = calibrate(logits, Calibration(), card.is_multi_label)
    probabilities = np.stack([result.probabilities for result in results])
    return Judged(split, card.labels, probabilities, before, truth_of(rows, card.labels), [row.patient_id for row in rows])


def truth_of(rows: Sequence[Row], labels: Sequence[str]) -> npt.NDArray[np.float32]:
    """(N, K): 1 where a row has the label, 0 where not, NaN where no row of its source has it."""
    told = {(row.get("source"), label) for row in rows for label in row.labels}
    return np.array(
        [[float(label in row.labels) if (row.get("source"), label) in told else np.nan for label in labels] for row in rows],
        dtype=np.float32,
    )


def conformal_table(card: AdapterCard) -> str:
    """Markdown: a line a label, and their means. A label that too few patients of `val` have is never ruled out."""
    measured = ("calibration error before", "calibration error", "brier before", "brier")
    names = (*measured, *(name + ending for name in OF_SETS[:2] for ending in ("", BY_PATIENT)), OF_SETS[2])
    coverage = card.conformal.coverage or 0.0
    lines = [
        f"{card.name}: conformal sets at a stated coverage of {coverage}, fitted on '{card.conformal.split}', "
        "measured on 'test'; 95 % intervals over patients, of little worth where all are covered.",
        "",
        "| label | positives | " + " | ".join(names) + " |",
        "|---" * (2 + len(names)) + "|",
    ]
    of = {(metric.label, metric.name): metric for metric in card.metrics if metric.split == "test"}
    for label, threshold in zip(card.labels, card.conformal.thresholds, strict=True):
        found = [of.get((label, name)) for name in names]
        positives = next((metric.positives for metric in found if metric is not None), "")
        mark = "" if threshold > 0 else " (never ruled out)"
        lines.append(f"| {label}{mark} | {positives} | " + " | ".join(_cell(metric) for metric in found) + " |")
    means = [of.get(("", name + MEAN)) for name in names]
    if any(means):
        lines.append("| mean of those that can be ruled out | | " + " | ".join(_cell(metric) for metric in means) + " |")
    if not all(card.conformal.thresholds):
        lines += ["", f"Never ruled out: fewer than {LEAST} patients of 'val' have it."]
    return "\n".join(lines) + "\n"


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return ""
    bounds = "" if metric.low is None else f" ({metric.low:.3f} to {metric.high:.3f})"
    return f"{metric.value:.3f}{bounds}"


if __name__ == "__main__":
    main()
