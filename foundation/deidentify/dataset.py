"""A new data set out of an old one: only what the rules keep, at every depth. Nothing is changed in place."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID

from foundation.deidentify.pseudonym import Pseudonyms
from foundation.deidentify.rules import BINARY, CODES, KEYED, KNOWN, NUMBERS, SEQUENCES

_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DEEPEST = 16


@dataclass
class Account:
    """What was done: how many attributes were kept, and how many of each kind of value were not."""

    kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)


def cleaned(dataset: Dataset, pseudonyms: Pseudonyms, account: Account, depth: int = 0) -> Dataset:
    """What may stay of `dataset`. An attribute whose value representation is not the standard's goes, too."""
    kept = Dataset()
    for tag in sorted(dataset.keys()):
        keyword = "" if BaseTag(tag).is_private else keyword_for_tag(tag)
        element = _kept(dataset, BaseTag(tag), keyword, pseudonyms, account, depth)
        if element is None:
            account.removed["private" if BaseTag(tag).is_private else keyword or "unknown"] += 1
        else:
            account.kept += 1
            kept.add(element)
    return kept


def _kept(
    dataset: Dataset, tag: BaseTag, keyword: str, pseudonyms: Pseudonyms, account: Account, depth: int
) -> DataElement | None:
    """The element as it may stay, None where it may not."""
    if keyword not in _RULED:
        return None
    try:
        element = dataset[tag]
    except (ValueError, TypeError, ArithmeticError, LookupError, NotImplementedError):
        return None  # its value is none of its kind
    if element.VR not in dictionary_VR(tag).split(" or "):
        return None
    if keyword in SEQUENCES:
        items = element.value if depth < _DEEPEST else ()
        return DataElement(tag, "SQ", Sequence([cleaned(item, pseudonyms, account, depth + 1) for item in items]))
    if keyword in BINARY:
        return DataElement(tag, element.VR, element.value)
    values = _values(element)
    if not values:
        return DataElement(tag, element.VR, None)
    if keyword in KEYED:
        return DataElement(tag, "UI", pseudonyms.uid(str(values[0])))
    is_safe = (
        (keyword in NUMBERS and all(_is_number(value) for value in values))
        or (keyword in CODES and all(str(value).strip() in CODES[keyword] | {""} for value in values))
        or (keyword in KNOWN and all(UID(str(value)).name != str(value) for value in values))
    )
    if not is_safe:
        return None
    plain = [str(value) if element.VR in ("DS", "IS", "UI", "CS", "LO") else value for value in values]
    return DataElement(tag, element.VR, plain if len(plain) > 1 else plain[0])


_RULED = NUMBERS | CODES.keys() | KEYED | KNOWN | BINARY | SEQUENCES


def _values(element: DataElement) -> list[Any]:
    value = element.value
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def _is_number(value: Any) -> bool:
    text = str(value).strip()
    if isinstance(value, bytes) or len(text) > 32:
        return False
    if isinstance(value, int | float):
        return math.isfinite(value)
    return bool(_DECIMAL.fullmatch(text))
