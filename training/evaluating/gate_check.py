"""What the gate lets through: films it should assess, by source, and pictures it should refuse, by kind.

    python -m training.evaluating.gate_check --report runs/gate                 the bundled model on the split `test`

Refused kinds that fitting knows are made from seeds it never used; those of `trust/unseen.py` are of kinds it never saw.
Lateral films stand apart: the model was not made for them, and whether they pass is only told.
"""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from foundation.gate import Gate
from training.evaluating.phantom_check import FIRST_SEED
from training.manifests.manifest import Row, load_manifest
from training.measuring.metrics import PatientBootstrap, weighted_mean
from training.measuring.report import Measure, Report, Section, Table, write_report
from training.trust.gate import OTHER_MODALITIES, film_vectors, grey_films, modality_of, phantom_greys
from training.trust.outside import Films, outside_films
from training.trust.unseen import beside, twos, unseen_kinds

CHECK_SEED = 77
PHANTOMS = 100
EACH = 60
FILMS, KNOWN_KINDS, NEW_KINDS, APART = "chest films", "to be refused", "to be refused, of kinds never seen", "told apart"


def gate_section(
    backbone: Backbone, gate: Gate, rows: Sequence[Row], *, resamples: int, seed: int, per_source: int | None = None
) -> Section:
    """Share of films assessed, source by source; share of other pictures assessed, kind by kind; what these are called."""
    measures: list[Measure] = []
    names: list[tuple[str, ...]] = []

    def add(label: str, group: str, films: Films, patients: Sequence[str]) -> None:
        verdicts = [gate.assess(v, film) for v, film in zip(film_vectors(backbone, films), films, strict=True)]
        passed = np.array([verdict.assessed for verdict in verdicts], float)
        draws = PatientBootstrap(patients, resamples, seed)
        estimate = draws.estimate(lambda weights: weighted_mean(passed, weights))
        measures.append(Measure("assessed", estimate, "gate", label, group, films=len(passed)))
        called = Counter(verdict.looks_like for verdict in verdicts if not verdict.assessed)
        names.append((label, ", ".join(f"{word} ({count})" for word, count in called.most_common(3)) or "-"))

    size = backbone.contract.size
    chest = [row for row in rows if modality_of(row) == "CXR"]
    frontal = [row for row in chest if row.get("view") != "L"]
    for source in dict.fromkeys(str(row.get("source") or "films") for row in frontal):
        held = _spread([row for row in frontal if str(row.get("source") or "films") == source], per_source)
        add(source, FILMS, grey_films([row.image for row in held], size), [row.patient_id for row in held])
    made = phantom_greys(PHANTOMS, size, FIRST_SEED)
    add("phantoms", FILMS, made, _each(made))
    lateral = [row for row in chest if row.get("view") == "L"]
    if lateral:
        add("lateral films", APART, grey_films([row.image for row in lateral], size), [row.patient_id for row in lateral])
    shown = grey_films([row.image for row in _spread(frontal, 150)], size) if frontal else made
    for group, kinds in ((KNOWN_KINDS, _known(size, rows, shown)), (NEW_KINDS, unseen_kinds(size, shown, CHECK_SEED))):
        for label, films in kinds:
            add(label, group, films, _each(films))
    note = "Share of pictures that are assessed: high is right for chest films, low for all else."
    words = Table(("picture", "what those refused are called"), tuple(names))
    return Section(
        "The gate: what is assessed", note, tuple(measures), rows=("group", "label"), columns=("name",), tables=(words,)
    )


def _known(size: int, rows: Sequence[Row], films: Films) -> Iterator[tuple[str, Films]]:
    yield from outside_films(films, CHECK_SEED, EACH).items()
    if len(films) > 1:
        yield "two films side by side, edge to edge", np.stack([beside(a, b) for a, b in twos(films)])
    others = [row.image for row in rows if modality_of(row) in OTHER_MODALITIES]
    if others:
        yield "CT and MR slices (manifest)", grey_films(others, size)


def _spread(rows: Sequence[Row], most: int | None) -> list[Row]:
    """At most so many, evenly from all of them."""
    if most is None or len(rows) <= most:
        return list(rows)
    return [rows[int(place)] for place in np.linspace(0, len(rows) - 1, most)]


def _each(films: Sequence[object] | npt.NDArray[np.uint8]) -> list[str]:
    return [str(index) for index in range(len(films))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluating.gate_check", description=__doc__)
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--manifest", type=Path, default=Path("../shared/data/chest/manifest.jsonl"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--per-source", type=int, help="films of a source at most; all where left out")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--report", type=Path, default=Path("runs/gate"))
    chosen = parser.parse_args()
    opened = open_checkpoint(chosen.checkpoint)
    gate = Gate.load(opened.folder)
    if gate is None:
        raise SystemExit("This checkpoint has no gate. Fit one: python -m training.trust.fit_gate")
    rows = load_manifest(chosen.manifest).of(chosen.split)
    made = gate_section(opened.backbone, gate, rows, resamples=chosen.resamples, seed=0, per_source=chosen.per_source)
    about = {
        "command": f"python -m training.evaluating.gate_check --split {chosen.split}",
        "checkpoint": {"fingerprint": opened.backbone.fingerprint},
        "system": platform.platform(terse=True),
    }
    print(write_report(Report("The gate", about, (made,)), chosen.report).read_text())


if __name__ == "__main__":
    main()
