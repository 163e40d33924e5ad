"""What a manifest's row must be: raw values to a checked `Row`, ids that are unique, patients that stay in one split.

Every problem names its row and the remedy; they are collected, so that one run names many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.manifests.row import FIELDS, SPLIT_WORDS, SPLITS, Cell, Row
from training.manifests.tables import Problems, Record


def to_row(record: Record, problems: Problems) -> Row | None:
    """A row, or None after its problems were noted."""
    before = len(problems.found)
    values, number = record.values, record.number
    image = _file(record, "image", problems)
    labels = _labels(record, problems)
    tabular = _tabular(record, problems)
    split = _split(record, problems)
    for name, value in values.items():
        if isinstance(value, float) and math.isnan(value):
            problems.add(number, f"{name!r} is NaN: write null where a value is missing")
    if image is None or len(problems.found) > before:
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


def _file(record: Record, name: str, problems: Problems) -> Path | None:
    value = record.values.get(name)
    if not isinstance(value, str) or not value:
        problems.add(record.number, f"{name!r} is missing: give the path of the {name}, relative to the manifest")
        return None
    path = (record.folder / value).absolute()
    if not path.is_file():
        problems.add(record.number, f"{name} {value!r} is not a file under {record.folder}: correct the path or cut it")
        return None
    return path


def _labels(record: Record, problems: Problems) -> tuple[str, ...]:
    value = record.values.get("labels")
    if value is None:
        return ()
    listed = value if isinstance(value, list) else [value]
    if any(not isinstance(label, str | int) or str(label).strip() == "" for label in listed):
        problems.add(record.number, "'labels' must be a list of words, such as ['effusion', 'mass']")
        return ()
    return tuple(dict.fromkeys(str(label).strip() for label in listed))


def _tabular(record: Record, problems: Problems) -> Mapping[str, Cell]:
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


def _split(record: Record, problems: Problems) -> str:
    word = record.values.get("split") or record.split
    if word is None:
        first = Path(str(record.values.get("image", ""))).parts[:1]
        word = SPLIT_WORDS.get(first[0].lower(), "train") if first else "train"
    split = SPLIT_WORDS.get(str(word).lower())
    if split is None:
        problems.add(record.number, f"unknown split {word!r}: write one of {', '.join(SPLITS)}")
    return split or "train"


def check_unique(rows: Sequence[Row], problems: Problems) -> None:
    first: dict[str, int] = {}
    for row in rows:
        if row.id in first:
            problems.add(row.number, f"id {row.id!r} is already on row {first[row.id]}: give each row its own `id`")
        first.setdefault(row.id, row.number)


def check_leaks(rows: Sequence[Row], problems: Problems) -> None:
    """A patient, a group or an image in two splits would score what was learnt by heart."""
    for name in ("patient_id", "group", "image"):
        first: dict[str, Row] = {}
        for row in rows:
            value = str(row.get(name))
            other = first.setdefault(value, row)
            is_said = name == "group" and row.group == row.patient_id  # the patient's own problem says it already
            if other.split != row.split and not is_said:
                problems.add(
                    row.number,
                    f"{name} {value!r} is in {row.split} but in {other.split} on row {other.number}: "
                    "put all rows of one patient into one split",
                )


def notes_on(records: Sequence[Record]) -> tuple[str, ...]:
    notes = []
    if not any(record.values.get("patient_id") for record in records):
        notes.append("no row names a patient: each image counts as a patient of its own")
    elif not all(record.values.get("patient_id") for record in records):
        notes.append("some rows name no patient: each of those images counts as a patient of its own")
    if all(record.values.get("split") is None and record.split is None for record in records):
        notes.append("no row names a split: the first folder of the image path stands for it, else train")
    return tuple(notes)
