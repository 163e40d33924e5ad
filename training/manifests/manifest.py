"""The manifest: which images there are, what is known of each, and which split each belongs to.

    load_manifest("data/manifest.jsonl", where="source=nih_cxr14,view=AP").of("train")

Reads JSON lines, CSV, COCO's annotations or LLaVA's conversations (`.json`), and a Hugging Face ImageFolder
(`metadata.jsonl` or `metadata.csv` beside the images, in the folder itself or in one folder a split); `columns` maps a
file's own column names. Every problem is a `ManifestError` that names the rows and the remedy; a patient in two splits is
one. Opens no image.

    row.py     Row           tables.py   the files               where.py   filters
    rules.py   the checks    check.py    `vesalius data check`

| field        | meaning                                                      | when absent                        |
|--------------|--------------------------------------------------------------|------------------------------------|
| `image`      | path, relative to the manifest (`file_name` for ImageFolder) | an error                           |
| `id`         | unique name of the row                                       | the image path                     |
| `split`      | train, val or test (`validation`, `valid`, `dev` mean val)   | the folder's name, else train      |
| `patient_id` | who is pictured; splits are by patient                       | each image is a patient of its own |
| `group`      | near-duplicates that must stay in one split                  | the patient                        |
| `labels`     | list; in CSV separated by `|` or `;` (`label` is accepted)   | not labelled                       |
| `text`       | report or caption (`caption` is accepted)                    | none                               |
| `mask`       | path of a mask, relative to the manifest                     | none                               |
| `tabular`    | object of numbers, words or null; in CSV columns `tabular.*` | empty                              |
| `licence`, `licence_class` | terms of the image                             | empty                              |

Any other field is kept in `Row.extra` and can be filtered by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from foundation.errors import InvalidRequest, ManifestError
from training.manifests.row import FIELDS, SPLITS, Cell, Row, rows_digest
from training.manifests.rules import check_leaks, check_unique, notes_on, to_row
from training.manifests.tables import Problems, read_records
from training.manifests.where import Where, filter_rows, parse_where

__all__ = [
    "FIELDS",
    "SPLITS",
    "Cell",
    "Manifest",
    "Row",
    "Where",
    "filter_rows",
    "load_manifest",
    "parse_where",
    "rows_digest",
]


@dataclass(frozen=True, eq=False)
class Manifest:
    """Validated rows in the order of the file; `notes` is what reading had to decide, in words for a person."""

    path: Path
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def of(self, split: str) -> tuple[Row, ...]:
        """The rows of one split; an empty split is an error."""
        if split not in SPLITS:
            raise InvalidRequest(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}", param="split")
        rows = tuple(row for row in self.rows if row.split == split)
        if not rows:
            counts = ", ".join(f"{name} {self.counts[name]}" for name in SPLITS)
            raise ManifestError(
                f"{self.path.name} has no row in split {split!r} (it has {counts}): "
                f"set `split` to {split!r} on some patients, or choose another split or filter",
                param="split",
            )
        return rows

    def select(self, keep: Callable[[Row], bool]) -> Manifest:
        return replace(self, rows=tuple(row for row in self.rows if keep(row)))

    @cached_property
    def counts(self) -> Mapping[str, int]:
        return {split: sum(row.split == split for row in self.rows) for split in SPLITS}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every label of these rows, the most frequent first."""
        count: dict[str, int] = {}
        for row in self.rows:
            for label in row.labels:
                count[label] = count.get(label, 0) + 1
        return tuple(sorted(count, key=lambda label: (-count[label], label)))

    @cached_property
    def digest(self) -> str:
        return rows_digest(self.rows)


def load_manifest(path: str | Path, where: Where = None, columns: Mapping[str, str] | None = None) -> Manifest:
    """Read, validate, then filter: a leak among rows that the filter leaves out is still an error.

    columns: what the file calls our fields, e.g. {"image": "path"}; an unknown field of ours is an error.
    """
    path = Path(path)
    problems = Problems(path)
    manifest = read_manifest(path, problems, columns)
    problems.raise_if_any()
    return filter_rows(manifest, where)


def read_manifest(path: Path, problems: Problems, columns: Mapping[str, str] | None = None) -> Manifest:
    """The rows that stand, every problem noted. Raises ManifestError where there is no file, or no row at all."""
    _check_columns(columns or {})
    records = list(read_records(path, problems, columns))
    if not records and not problems.found:
        raise ManifestError(f"{path.name} has no rows: write one JSON or CSV row per image")
    rows = tuple(row for record in records if (row := to_row(record, problems)) is not None)
    check_unique(rows, problems)
    check_leaks(rows, problems)
    return Manifest(path, rows, notes_on(records))


def _check_columns(columns: Mapping[str, str]) -> None:
    for ours in columns:
        if ours not in FIELDS:
            known = ", ".join(FIELDS)
            raise InvalidRequest(f"data.columns: {ours!r} is not a field of a manifest; known are {known}.", param="columns")
