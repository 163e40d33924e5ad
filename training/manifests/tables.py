"""The files a manifest can be: JSON lines, CSV, COCO's annotations, LLaVA's conversations, and a Hugging Face
ImageFolder, as raw rows.

Knows nothing of what a row must hold: that is `rules.py`. Lines that are no rows are noted as problems.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from foundation.errors import ManifestError
from training.manifests.coco import read_coco
from training.manifests.qa import read_llava
from training.manifests.row import SPLIT_WORDS, Cell

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
SHOWN_PROBLEMS = 8
Reader: TypeAlias = Callable[[Path, "Problems"], Iterator[tuple[int, dict[str, Any]]]]
_SYNONYMS = {"file_name": "image", "label": "labels", "caption": "text"}


@dataclass(frozen=True)
class Record:
    """One raw row: `folder` is what its paths are relative to, `split` the split its folder stands for, if any."""

    number: int
    values: Mapping[str, Any]
    folder: Path
    split: str | None = None
    prefix: str = ""  # "train/" in an ImageFolder with a table a split: makes file names unique


class Problems:
    """Collects problems, so that one run names many rows; raised as one ManifestError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[tuple[int, str]] = []

    def add(self, number: int, sentence: str) -> None:
        self.found.append((number, sentence))

    def raise_if_any(self) -> None:
        if not self.found:
            return
        shown = "; ".join(f"row {number}: {sentence}" for number, sentence in self.found[:SHOWN_PROBLEMS])
        rest = len(self.found) - SHOWN_PROBLEMS
        raise ManifestError(f"{self.path.name}: {shown}" + (f"; and {rest} more rows" if rest > 0 else ""))


def read_records(path: Path, problems: Problems, columns: Mapping[str, str] | None = None) -> Iterator[Record]:
    """Every raw row; columns: our field -> what the file calls it."""
    names = _SYNONYMS | {theirs: ours for ours, theirs in (columns or {}).items()}
    for record in _read_any(path, problems):
        values = {names.get(name, name): value for name, value in record.values.items()}
        yield replace(record, values=values)


def _read_any(path: Path, problems: Problems) -> Iterator[Record]:
    if path.is_dir():
        yield from _read_image_folder(path, problems)
    elif not path.is_file():
        raise ManifestError(f"no manifest at {path}: give a .jsonl, .csv or .json file, or a folder with metadata.jsonl")
    else:
        split = SPLIT_WORDS.get(path.parent.name.lower()) if path.name in METADATA_NAMES else None
        yield from _read_table(path, split, problems)


def _read_image_folder(folder: Path, problems: Problems) -> Iterator[Record]:
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


def _read_table(path: Path, split: str | None, problems: Problems, prefix: str = "") -> Iterator[Record]:
    readers: dict[str, Reader] = {".csv": _read_csv, ".json": _read_json}
    reader = readers.get(path.suffix.lower(), _read_json_lines)
    try:
        for number, values in reader(path, problems):
            yield Record(number, values, path.parent, split, prefix)
    except UnicodeDecodeError:
        raise ManifestError(f"{path.name} is not UTF-8 text: save it as UTF-8") from None


def _read_json(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """A list is LLaVA's conversations, an object COCO's annotations."""
    with path.open(encoding="utf-8-sig") as file:
        is_list = file.read(64).lstrip().startswith("[")
    return (read_llava if is_list else read_coco)(path, problems)


def _read_json_lines(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _read_csv(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
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
