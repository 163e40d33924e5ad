"""Values from a patient's chart, as a person types them, to cells as the API takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from app import words
from foundation.errors import InvalidRequest
from serving.schemas.fuse import Cell
from serving.schemas.models import TableField

BELOW, ABOVE = "-inf", "inf"


def read_chart(fields: Sequence[TableField], typed: Sequence[str | None]) -> dict[str, Cell]:
    """Only what is not empty; what is typed is in the order of the fields. Raises InvalidRequest that names a wrong one."""
    cells = {field.name: read_cell(field, value or "") for field, value in zip(fields, typed, strict=True)}
    return {name: cell for name, cell in cells.items() if cell is not None}


def read_cell(field: TableField, typed: str) -> Cell:
    """ "< 0.3" is below and "> 90" above detection, whatever number follows; "" is None.

    NOTE: a comma is refused, because 1,200 and 12,5 are written by different people.
    """
    text = typed.strip()
    if not text:
        return None
    if field.kind == "category":
        return text
    if text[0] in "<>":
        _number(field, typed, text[1:].strip() or "0")
        return BELOW if text[0] == "<" else ABOVE
    return _number(field, typed, text)


def _number(field: TableField, typed: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidRequest(words.FIELD_WRONG.format(name=title_of(field), value=typed.strip()[:40]), param=field.name)
    return value


def title_of(field: TableField) -> str:
    return field.description or field.name


def missing_of(fields: Sequence[TableField], cells: Mapping[str, Cell], absent: Sequence[str]) -> tuple[str, ...]:
    """Titles of the empty fields of the groups that are there; of a group that is absent all are empty anyway."""
    return tuple(title_of(field) for field in fields if field.name not in cells and field.modality not in absent)
