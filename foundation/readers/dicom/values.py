"""Taking single values out of a data set whose fields may be missing, empty, multi-valued or nonsense."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydicom.dataset import Dataset


def number(dataset: Dataset, keyword: str) -> float | None:
    """The field as one finite number (its first, if it has several), or None."""
    found = numbers(dataset, keyword)
    return found[0] if found else None


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The field as finite numbers; empty if it is missing or any of it is not a number."""
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return []
        parts = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        found = [float(part) for part in parts]
    except (ValueError, TypeError, ArithmeticError):
        return []
    return found if all(math.isfinite(part) for part in found) else []


def words(dataset: Dataset, keyword: str) -> list[str]:
    """The field as upper-case strings without surrounding blanks."""
    try:
        value = dataset.get(keyword)
    except (ValueError, TypeError):
        return []
    parts = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [str(part).strip().upper() for part in parts if part is not None]


def word(dataset: Dataset, keyword: str) -> str:
    found = words(dataset, keyword)
    return found[0] if found else ""


def frame_group(dataset: Dataset, frame: int, group: str) -> Dataset | None:
    """A functional group of an enhanced multi-frame file: the frame's own, else the shared one, else None."""
    for holder, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = dataset.get(holder)
        if items is not None and index < len(items):
            found = items[index].get(group)
            if found:
                return Dataset(found[0])
    return None
