"""What the conformal sets of classification adapters cover: over new splits of val and test, and on the split that there is.

    python -m training.evaluating.coverage --report docs/results/coverage
    python -m training.evaluating.coverage cxr-findings --refit --splits 200 --report runs/coverage

Each adapter stays as it is: val and test were held out from the fitting of its weights (val chose its epoch and calibrated it),
so their patients can be dealt anew into films that thresholds are fitted on and films that they are measured on
(`trust/resplit.py`). `--refit` first fits the card's own thresholds on val, as `training.trust.fit_conformal` does.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from adapters.card import CARD, AdapterCard
from adapters.files import read_adapter
from adapters.store import AdapterStore
from foundation.checkpoint import open_checkpoint
from foundation.errors import InvalidRequest
from training.manifests.manifest import load_manifest
from training.measuring.metrics import LEVEL, Estimate
from training.measuring.report import Measure, Report, Section, Table, hardware, write_report
from training.trust.conformal import COVERAGE
from training.trust.fit_conformal import MANIFEST, held_out, with_thresholds
from training.trust.resplit import NEAR, Coverage, coverages
from training.trust.trust_metrics import Judged

BUNDLED = ("cxr-findings", "tb-screen", "pediatric-pneumonia")
RESPLIT, ONE = "new splits", "val to test"
OWN, SERVED, BY_FILM = "coverage", "coverage as served", "coverage by film"
AS_FAR, AS_NEAR = "new splits as far off", "new splits within two points"
READ_AS = (
    f"New splits: the mean, and between what {LEVEL:.0%} of them lie, which is what one set of so few patients can show. "
    "Val to test: the card's thresholds on the one split that there is, with the bootstrap interval over patients of test (of "
    "no width where all are covered). As far off: the share of new splits that lie as far from their mean as that split "
    "does; where it is small, patients of test differ from those of val. As served: a set of neither is told as undecided, and "
    "of classes the likeliest is always left, so that it can only be higher. By film: every film alike, so that patients with "
    "many count more, which is not what is stated. Within two points: the share of new splits whose own coverage is."
)
ABOUT_ONE = ("label", "films", "patients of val, test")
OF_SPLITS = tuple(f"{by}: {name}" for by in (RESPLIT, ONE) for name in (OWN, "as served", "by film"))
COLUMNS = (*ABOUT_ONE, *OF_SPLITS, "as far off", "within two points")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluating.coverage", description=__doc__)
    parser.add_argument("adapters", nargs="*", default=BUNDLED, help="names in the library, or folders")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--manifest", type=Path, default=Path(MANIFEST))
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--refit", action="store_true", help="fit the cards' thresholds on val first")
    parser.add_argument("--report", type=Path, default=Path("runs/coverage"))
    chosen = parser.parse_args()
    backbone, rows = open_checkpoint(chosen.checkpoint).backbone, load_manifest(chosen.manifest).rows
    sections, digests = [], {}
    for name in chosen.adapters:
        adapter = read_adapter(folder_of(name), backbone)
        val, test = held_out(backbone, adapter, rows)
        card = adapter.card
        if chosen.refit:
            card = with_thresholds(card, val, test, card.conformal.coverage or COVERAGE)
            (folder_of(name) / CARD).write_text(card.to_json(), encoding="utf-8")
        sections.append(section(card, val, test, chosen.splits, chosen.seed, chosen.resamples))
        digests[card.name] = read_adapter(folder_of(name), backbone).digest
    about = {
        "command": f"python -m training.evaluating.coverage --splits {chosen.splits} --seed {chosen.seed}",
        "checkpoint": {"fingerprint": backbone.fingerprint},
        "adapters": digests,
        "seed": chosen.seed,
        "bootstrap": f"{chosen.resamples} resamples of patients of test, {LEVEL:.0%} percentile intervals",
        "hardware": hardware(),
        "how to read it": READ_AS,
    }
    print(write_report(Report("What conformal sets cover", about, tuple(sections)), chosen.report).read_text())


def folder_of(name: str) -> Path:
    """An adapter's folder, by its path or its name in the library."""
    return Path(name) if (Path(name) / CARD).is_file() else AdapterStore.default().get(name).folder


def section(card: AdapterCard, val: Judged, test: Judged, splits: int, seed: int, resamples: int) -> Section:
    """One adapter: a line for each label and truth. Raises InvalidRequest where its card has no thresholds."""
    coverage = card.conformal.coverage
    if coverage is None:
        raise InvalidRequest(f"{card.name} has no conformal thresholds: fit them with --refit", param="adapters")
    found = coverages(val, test, card.conformal, splits, seed, resamples)
    note = (
        f"Stated: {coverage} of patients, one film of each. {splits} new splits of {len(val.truth)} films of val and "
        f"{len(test.truth)} of test, {len(set(val.patients))} patients to fit on and {len(set(test.patients))} to measure on. "
        f"{_within(found, coverage)}"
    )
    measures = tuple(measure for one in found for measure in _measures(card.name, one))
    table = Table(COLUMNS, tuple(_line(one) for one in found))
    return Section(card.name, note, measures, tables=(table,), is_laid_out=False)


def _within(found: Sequence[Coverage], coverage: float) -> str:
    """How many lines are within two points of what is stated: over new splits, on the one there is, on a new one."""

    def near(values: Sequence[float]) -> str:
        count = sum(abs(value - coverage) <= NEAR for value in values)
        return f"{count} of {len(values)} (furthest: {max((abs(value - coverage) for value in values), default=0.0):.3f})"

    means, ones = [one.resplit.own.value for one in found], [one.one.own.value for one in found]
    return (
        f"Within two points: {near(means)} as the mean over new splits; {near(ones)} on the one split; "
        f"{sum(one.near for one in found):.1f} on a new split, on average."
    )


def _measures(adapter: str, one: Coverage) -> list[Measure]:
    group = "with it" if one.held else "without it"
    told = {
        (name, by): estimate
        for by, counts in ((RESPLIT, one.resplit), (ONE, one.one))
        for name, estimate in zip((OWN, SERVED, BY_FILM), counts, strict=True)
    }
    told[AS_FAR, RESPLIT], told[AS_NEAR, RESPLIT] = Estimate(one.as_far), Estimate(one.near)
    for split, patients in zip(("val", "test"), one.patients, strict=True):
        told[f"patients of {split}", ONE] = Estimate(float(patients))
    return [Measure(name, estimate, by, one.label, group, source=adapter) for (name, by), estimate in told.items()]


def _line(one: Coverage) -> tuple[str, ...]:
    return (
        one.label,
        "with it" if one.held else "without it",
        ", ".join(map(str, one.patients)),
        *(_cell(estimate) for estimate in (*one.resplit, *one.one)),
        f"{one.as_far:.2f}",
        f"{one.near:.2f}",
    )


def _cell(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return "-" if math.isnan(estimate.value) else f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.2f} to {estimate.high:.2f})"


if __name__ == "__main__":
    main()
