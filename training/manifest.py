"""The manifest: which images there are, what is known of each, and which split each belongs to.

    load_manifest("data/manifest.jsonl", where="source=nih_cxr14,view=AP").of("train")

Reads JSON lines, CSV, LLaVA's conversations (`.json`, see `qa.py`), and a Hugging Face ImageFolder (`metadata.jsonl` or
`metadata.csv` beside the images, in the folder itself or in one folder a split). Every problem is a `ManifestError` that
names the rows and the remedy; a patient in two splits is one. Opens no image: that is `datasets.py`.

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

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from foundation.errors import InvalidRequest, ManifestError
from training.qa import read_llava

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLIT_WORDS |= {"test": "test", "testing": "test", "eval": "test", "evaluation": "test"}
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
SHOWN_PROBLEMS = 8

Where: TypeAlias = str | Sequence[str] | Mapping[str, str] | None
Cell: TypeAlias = float | str | bool | None


@dataclass(frozen=True, eq=False)
class Row:
    """One image and what is known of it. `number` is its line in the file, the header of a CSV being line 1."""

    number: int
    id: str
    image: Path  # absolute
    split: str  # train | val | test
    patient_id: str
    group: str
    labels: tuple[str, ...] = ()
    is_labelled: bool = False
    text: str | None = None
    mask: Path | None = None
    tabular: Mapping[str, Cell] = field(default_factory=dict)
    licence: str = ""
    licence_class: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()  # what paths in `extra` are relative to

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field of the table above, or of `extra`."""
        return getattr(self, name) if name in FIELDS else self.extra.get(name, default)

    def words(self, name: str) -> tuple[str, ...]:
        """The value as the words a filter may ask for: one for each label, else one (`null` where empty)."""
        if name == "labels":
            return self.labels
        value = self.get(name)
        if isinstance(value, str):
            return (value,)
        return (json.dumps(value, ensure_ascii=False, default=str),)


FIELDS = (
    "id",
    "image",
    "split",
    "patient_id",
    "group",
    "labels",
    "text",
    "mask",
    "tabular",
    "licence",
    "licence_class",
)
_SYNONYMS = {"file_name": "image", "label": "labels", "caption": "text"}


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


def rows_digest(rows: Iterable[Row]) -> str:
    """SHA-256 (hex) over what a model would learn from these rows: ids, image names and sizes, labels, texts ..."""
    digest = hashlib.sha256()
    for row in rows:
        size = row.image.stat().st_size if row.image.is_file() else -1
        known = [row.id, row.image.name, size, row.split, row.patient_id, list(row.labels), row.text, dict(row.tabular)]
        digest.update(json.dumps(known, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()


def load_manifest(path: str | Path, where: Where = None) -> Manifest:
    """Read, validate, then filter: a leak among rows that the filter leaves out is still an error."""
    path = Path(path)
    problems = _Problems(path)
    records = list(_read_records(path, problems))
    problems.raise_if_any()
    if not records:
        raise ManifestError(f"{path.name} has no rows: write one JSON or CSV row per image")
    rows = tuple(row for record in records if (row := _to_row(record, problems)) is not None)
    problems.raise_if_any()
    _check_unique(rows, problems)
    _check_leaks(rows, problems)
    problems.raise_if_any()
    return filter_rows(Manifest(path, rows, _notes(records)), where)


# --- filters ---------------------------------------------------------------------------------------------------------


def parse_where(where: Where) -> dict[str, tuple[str, ...]]:
    """`"source=a,view=AP"` -> {field: accepted values}. A field named twice accepts either value."""
    if where is None:
        return {}
    if isinstance(where, Mapping):
        return {name: (str(value),) for name, value in where.items()}
    clauses = _split_clauses(where) if isinstance(where, str) else [c for text in where for c in _split_clauses(text)]
    wanted: dict[str, tuple[str, ...]] = {}
    for clause in clauses:
        name, equals, value = clause.partition("=")
        if not equals or not name.strip():
            raise InvalidRequest(f"filter {clause!r} is not of the form field=value", param="where")
        wanted[name.strip()] = (*wanted.get(name.strip(), ()), value.strip())
    return wanted


def _split_clauses(text: str) -> list[str]:
    """Split at commas outside brackets, so that `orig_size=[128, 128]` stays whole."""
    return [clause.strip() for clause in re.split(r",(?![^\[{(]*[\]})])", text) if clause.strip()]


def filter_rows(manifest: Manifest, where: Where) -> Manifest:
    """Keep the rows that match every field; an unknown field, or a value no row has, is an error naming the known."""
    wanted = parse_where(where)
    known = (*FIELDS, *sorted({name for row in manifest.rows for name in row.extra}))
    for name, values in wanted.items():
        if name not in known:
            raise InvalidRequest(f"unknown field {name!r} in the filter: known are {', '.join(known)}", param="where")
        present = {word for row in manifest.rows for word in row.words(name)}
        for value in values:
            if value not in present:
                shown = ", ".join(sorted(present)[:20]) + (", ..." if len(present) > 20 else "")
                raise InvalidRequest(f"no row has {name}={value!r}: the values are {shown}", param="where")
    kept = manifest.select(lambda row: all(set(row.words(name)) & set(values) for name, values in wanted.items()))
    if not kept.rows:
        raise ManifestError(f"no row of {manifest.path.name} matches {wanted}: loosen the filter", param="where")
    return kept


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """One raw row: `folder` is what its paths are relative to, `split` the split its folder stands for, if any."""

    number: int
    values: Mapping[str, Any]
    folder: Path
    split: str | None = None
    prefix: str = ""  # "train/" in an ImageFolder with a table a split: makes file names unique


class _Problems:
    """Collects problems, so that one run names many rows; raised as one ManifestError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sentences: list[str] = []

    def add(self, number: int, sentence: str) -> None:
        self.sentences.append(f"row {number}: {sentence}")

    def raise_if_any(self) -> None:
        if not self.sentences:
            return
        shown = "; ".join(self.sentences[:SHOWN_PROBLEMS])
        rest = len(self.sentences) - SHOWN_PROBLEMS
        raise ManifestError(f"{self.path.name}: {shown}" + (f"; and {rest} more rows" if rest > 0 else ""))


def _read_records(path: Path, problems: _Problems) -> Iterator[_Record]:
    if path.is_dir():
        yield from _read_image_folder(path, problems)
    elif not path.is_file():
        raise ManifestError(f"no manifest at {path}: give a .jsonl or .csv file, or a folder with metadata.jsonl")
    else:
        split = SPLIT_WORDS.get(path.parent.name.lower()) if path.name in METADATA_NAMES else None
        yield from _read_table(path, split, problems)


def _read_image_folder(folder: Path, problems: _Problems) -> Iterator[_Record]:
    """`folder/metadata.*`, or `folder/train/metadata.*` and so on; the folder's name is the split."""
    own = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    inner = [child / name for child in sorted(folder.iterdir()) for name in METADATA_NAMES if (child / name).is_file()]
    manifest = folder / "manifest.jsonl"
    tables = own or inner or ([manifest] if manifest.is_file() else [])
    if not tables:
        raise ManifestError(
            f"{folder} holds no metadata.jsonl or metadata.csv: write one with a `file_name` column beside the images"
        )
    for table in tables:
        prefix = "" if table.parent == folder else f"{table.parent.name}/"
        yield from _read_table(table, SPLIT_WORDS.get(table.parent.name.lower()), problems, prefix)


def _read_table(path: Path, split: str | None, problems: _Problems, prefix: str = "") -> Iterator[_Record]:
    reader = {".csv": _read_csv, ".json": read_llava}.get(path.suffix.lower(), _read_json_lines)
    try:
        for number, values in reader(path, problems):
            yield _Record(number, {_SYNONYMS.get(k, k): v for k, v in values.items()}, path.parent, split, prefix)
    except UnicodeDecodeError:
        raise ManifestError(f"{path.name} is not UTF-8 text: save it as UTF-8") from None


def _read_json_lines(path: Path, problems: _Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise ManifestError(f"{path.name} is neither .jsonl, .csv nor .json: write JSON lines (one object a line) or CSV")
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                problems.add(number, f"not valid JSON at column {error.colno}: write one object a line")
                continue
            if isinstance(values, dict):
                yield number, values
            else:
                problems.add(number, "not a JSON object: write {...} on each line")


def _read_csv(path: Path, problems: _Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for cells in reader:
            if None in cells or None in cells.values():
                problems.add(reader.line_num, "it has not as many cells as the header: quote cells that hold a comma")
                continue
            yield reader.line_num, _csv_values(cells)


def _csv_values(cells: Mapping[str, str]) -> dict[str, Any]:
    """Empty cells are null, `tabular.x` columns are gathered, labels are split; other cells stay words."""
    values: dict[str, Any] = {name: cell.strip() or None for name, cell in cells.items() if "." not in name}
    tabular = {name[8:]: _csv_number(cell) for name, cell in cells.items() if name.startswith("tabular.")}
    values |= {name: cell for name, cell in cells.items() if "." in name and not name.startswith("tabular.")}
    if tabular:
        values["tabular"] = tabular
    for name in ("labels", "label"):
        if name in values:
            values[name] = [part.strip() for part in re.split(r"[|;]", values[name] or "") if part.strip()]
    if values.get("age") is not None:
        values["age"] = _csv_number(values["age"])
    return values


def _csv_number(cell: str) -> Cell:
    try:
        return float(cell)
    except ValueError:
        return cell.strip() or None


# --- validation ------------------------------------------------------------------------------------------------------


def _to_row(record: _Record, problems: _Problems) -> Row | None:
    """A row, or None after its problems were noted."""
    before = len(problems.sentences)
    values, number = record.values, record.number
    image = _file(record, "image", problems)
    labels = _labels(record, problems)
    tabular = _tabular(record, problems)
    split = _split(record, problems)
    for name, value in values.items():
        if isinstance(value, float) and math.isnan(value):
            problems.add(number, f"{name!r} is NaN: write null where a value is missing")
    if image is None or len(problems.sentences) > before:
        return None
    row_id = _word(values.get("id"), f"{record.prefix}{values['image']}")
    patient_id = _word(values.get("patient_id"), row_id)
    return Row(
        number=number,
        id=row_id,
        image=image,
        split=split,
        patient_id=patient_id,
        group=_word(values.get("group"), patient_id),
        labels=labels,
        is_labelled=values.get("labels") is not None,
        text=None if values.get("text") is None else str(values["text"]),
        mask=_file(record, "mask", problems) if values.get("mask") else None,
        tabular=tabular,
        licence=str(values.get("licence") or ""),
        licence_class=str(values.get("licence_class") or ""),
        extra={name: value for name, value in values.items() if name not in FIELDS},
        folder=record.folder.absolute(),
    )


def _word(value: Any, default: str) -> str:
    """A number 0 is a name too; only null and the empty word are not."""
    return default if value is None or value == "" else str(value)


def _file(record: _Record, name: str, problems: _Problems) -> Path | None:
    value = record.values.get(name)
    if not isinstance(value, str) or not value:
        problems.add(record.number, f"{name!r} is missing: give the path of the {name}, relative to the manifest")
        return None
    path = (record.folder / value).absolute()
    if not path.is_file():
        problems.add(record.number, f"{name} {value!r} is not a file under {record.folder}: correct the path or cut it")
        return None
    return path


def _labels(record: _Record, problems: _Problems) -> tuple[str, ...]:
    value = record.values.get("labels")
    if value is None:
        return ()
    listed = value if isinstance(value, list) else [value]
    if any(not isinstance(label, str | int) or str(label).strip() == "" for label in listed):
        problems.add(record.number, "'labels' must be a list of words, such as ['effusion', 'mass']")
        return ()
    return tuple(dict.fromkeys(str(label).strip() for label in listed))


def _tabular(record: _Record, problems: _Problems) -> Mapping[str, Cell]:
    """Numbers (infinite ones mean beyond detection), words or null; NaN is an error."""
    value = record.values.get("tabular") or {}
    if not isinstance(value, Mapping):
        problems.add(record.number, "'tabular' must be an object of name: number, word or null")
        return {}
    for name, cell in value.items():
        if isinstance(cell, float) and math.isnan(cell):
            problems.add(record.number, f"tabular value {name!r} is NaN: write null where a value is missing")
        elif not isinstance(cell, float | int | str | bool | None):
            problems.add(record.number, f"tabular value {name!r} must be a number, a word or null")
    return dict(value)


def _split(record: _Record, problems: _Problems) -> str:
    word = record.values.get("split") or record.split
    if word is None:
        first = Path(str(record.values.get("image", ""))).parts[:1]
        word = SPLIT_WORDS.get(first[0].lower(), "train") if first else "train"
    split = SPLIT_WORDS.get(str(word).lower())
    if split is None:
        problems.add(record.number, f"unknown split {word!r}: write one of {', '.join(SPLITS)}")
    return split or "train"


def _check_unique(rows: Sequence[Row], problems: _Problems) -> None:
    first: dict[str, int] = {}
    for row in rows:
        if row.id in first:
            problems.add(row.number, f"id {row.id!r} is already on row {first[row.id]}: give each row its own `id`")
        first.setdefault(row.id, row.number)


def _check_leaks(rows: Sequence[Row], problems: _Problems) -> None:
    """A patient, a group or an image in two splits would score what was learnt by heart."""
    for name in ("patient_id", "group", "image"):
        first: dict[str, Row] = {}
        for row in rows:
            value = str(row.get(name))
            other = first.setdefault(value, row)
            if other.split != row.split:
                problems.add(
                    row.number,
                    f"{name} {value!r} is in {row.split} but in {other.split} on row {other.number}: "
                    "put all rows of one patient into one split",
                )


def _notes(records: Sequence[_Record]) -> tuple[str, ...]:
    notes = []
    if not any(record.values.get("patient_id") for record in records):
        notes.append("no row names a patient: each image counts as a patient of its own")
    elif not all(record.values.get("patient_id") for record in records):
        notes.append("some rows name no patient: each of those images counts as a patient of its own")
    if all(record.values.get("split") is None and record.split is None for record in records):
        notes.append("no row names a split: the first folder of the image path stands for it, else train")
    return tuple(notes)
