"""Whether a manifest is fit to train on: counts, and every problem at once, each with its row and the remedy.

Beyond what `load_manifest` refuses, files are opened here: equal bytes under two rows, films that cannot be read, masks of
another size.

    problem   nothing can be trained until it is mended        note   worth knowing
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foundation.errors import FilmError
from foundation.image import MedicalImage
from foundation.readers import read_film
from training.manifests.manifest import Manifest, read_manifest
from training.manifests.row import SPLITS, Row
from training.manifests.tables import Problems
from training.manifests.where import Where, filter_rows

SHOWN = 40
MASK_FIELDS = ("mask", "mask_lung", "mask_multi")


@dataclass(frozen=True)
class Problem:
    """row: its line in the file (0: the file as a whole)."""

    row: int
    sentence: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.sentence}" if self.row else self.sentence


@dataclass(frozen=True)
class ManifestReport:
    """counts: {"split" | "source" | "label" | "licence class": {value: {split: films}}}."""

    name: str
    films: int
    patients: int
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_fit": not self.problems}

    def as_text(self) -> str:
        lines = [f"{self.name}: {self.films} films of {self.patients} patients"]
        for kind, values in self.counts.items():
            lines += ["", f"{kind:34} {'train':>7} {'val':>7} {'test':>7}"]
            lines += [
                f"  {name[:32]:32} {' '.join(f'{of.get(split, 0):7}' for split in SPLITS)}" for name, of in values.items()
            ]
        lines += ["", *(f"note: {note}" for note in self.notes)]
        lines += [f"problem: {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"and {len(self.problems) - SHOWN} more problems; --json lists them all")
        lines.append("Mend the problems first." if self.problems else "No problem found.")
        return "\n".join(lines)


def check_manifest(path: Path, where: Where = None, columns: Mapping[str, str] | None = None) -> ManifestReport:
    """Read, filter and look into the files. Raises ManifestError only where there is nothing to read."""
    problems = Problems(path)
    whole = read_manifest(path, problems, columns)
    kept = filter_rows(whole, where) if whole.rows else whole
    notes = list(whole.notes)
    numbers = {row.number for row in kept.rows}
    _check_splits(kept, problems, notes)
    _check_files(kept.rows, problems, notes)
    standing = {row.number for row in whole.rows}
    found = [Problem(*one) for one in problems.found if one[0] in numbers or one[0] not in standing or not where]
    patients = len({row.patient_id for row in kept.rows})
    return ManifestReport(path.name, len(kept), patients, _counts(kept.rows), tuple(found), tuple(notes))


def _counts(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, int]]]:
    def table(values: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for name, split in values:
            found.setdefault(name, dict.fromkeys(SPLITS, 0))[split] += 1
        return dict(sorted(found.items(), key=lambda item: (-sum(item[1].values()), item[0])))

    labelled = [(label, row.split) for row in rows for label in (row.labels or (("(none)",) if row.is_labelled else ()))]
    return {
        "films": table([("all", row.split) for row in rows]),
        "source": table([(str(row.get("source") or "(not named)"), row.split) for row in rows]),
        "label": table(labelled),
        "licence class": table([(row.licence_class or "(not named)", row.split) for row in rows]),
    }


def _check_splits(manifest: Manifest, problems: Problems, notes: list[str]) -> None:
    for split in ("train", "val"):
        if not manifest.counts[split]:
            problems.add(0, f"the split {split!r} is empty: set `split` to {split!r} on some patients, or loosen the filter")
    if not manifest.counts["test"]:
        notes.append("the split 'test' is empty: the report will have no figures of films that nothing was chosen by")
    held = Counter(label for row in manifest.rows if row.split == "val" for label in row.labels)
    few = [label for label, count in held.items() if count < 5]
    if few:
        notes.append(f"fewer than five films in 'val' for {', '.join(sorted(few))}: its calibration will be poor")


def _check_files(rows: Sequence[Row], problems: Problems, notes: list[str]) -> None:
    """Each film and its masks opened once. Equal files in two splits are a leak; in one split they count twice."""
    first: dict[str, Row] = {}
    twice = 0
    for row in rows:
        raw = row.image.read_bytes()
        try:
            film = read_film(raw)
        except FilmError as error:
            problems.add(row.number, f"image {row.image.name!r} cannot be read: {error.message} Copy it again or cut the row.")
            continue
        _check_masks(row, film, problems)
        other = first.setdefault(hashlib.sha256(raw).hexdigest(), row)
        if other is not row and other.image != row.image:
            twice += 1
            _check_twin(row, other, problems)
    if twice:
        notes.append(f"{twice} films are byte for byte those of another row")


def _check_twin(row: Row, other: Row, problems: Problems) -> None:
    same = f"image {row.image.name!r} is byte for byte the one of row {other.number}"
    if other.split != row.split:
        problems.add(row.number, f"{same}, but in {row.split} and not in {other.split}: cut one, or put both into one split")
    elif other.patient_id != row.patient_id:
        problems.add(row.number, f"{same}, but of another patient: correct `patient_id` or cut one of them")


def _check_masks(row: Row, film: MedicalImage, problems: Problems) -> None:
    for name in MASK_FIELDS:
        value = row.get(name)
        if not value:
            continue
        path = value if isinstance(value, Path) else row.folder / str(value)
        if not path.is_file():
            problems.add(row.number, f"{name} {str(value)!r} is not a file beside the manifest: correct the path or cut it")
            continue
        try:
            mask = read_film(path.read_bytes())
        except FilmError as error:
            problems.add(row.number, f"{name} {path.name!r} cannot be read: {error.message} Write it again or cut it.")
            continue
        if mask.pixels.shape[:3] != film.pixels.shape[:3]:
            found, wanted = (" x ".join(map(str, one.pixels.shape[1:3])) for one in (mask, film))
            problems.add(row.number, f"{name} has {found} pixels, the film {wanted}: store the mask at the film's size")
