"""One row of a manifest: an image and what is known of it. How rows are read stands in `manifest.py`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLIT_WORDS |= {"test": "test", "testing": "test", "eval": "test", "evaluation": "test"}

Cell: TypeAlias = float | str | bool | None

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


def rows_digest(rows: Iterable[Row]) -> str:
    """SHA-256 (hex) over what a model would learn from these rows: ids, image names and sizes, labels, texts ..."""
    digest = hashlib.sha256()
    for row in rows:
        size = row.image.stat().st_size if row.image.is_file() else -1
        known = [row.id, row.image.name, size, row.split, row.patient_id, list(row.labels), row.text, dict(row.tabular)]
        digest.update(json.dumps(known, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()
