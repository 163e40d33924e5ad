"""Fields of a table beside a film: what each one is, and what of it a model sees.

A number is scaled robustly (median and quartiles of the training rows) and by its rank among them; below and above
detection (`-inf`, `inf`) and missing are states of their own, never numbers. A category is one of the words seen.

    cell                      state
    12.5                      VALUE, with (scaled, rank)
    -inf or "-inf"            BELOW detection
    inf or "inf"              ABOVE detection
    null, or not given        MISSING
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from adapters.card import AdapterCard
from foundation.errors import AdapterRefused, InvalidRequest

Cell: TypeAlias = float | int | str | bool | None
NUMBER, CATEGORY = "number", "category"
KINDS = (NUMBER, CATEGORY)
VALUE, MISSING, BELOW, ABOVE = range(4)
STATES = 4


@dataclass(frozen=True)
class TabularField:
    """One field. modality: the group it belongs to; unit: as given, words for people.

    low, high: what is physically possible; beyond it a value is refused. seen_low, seen_high: the range of the training
    rows; beyond it a value is used, held at the border, and named in the result. categories: the words of a category.
    """

    name: str
    modality: str
    kind: str = NUMBER
    unit: str = ""
    low: float | None = None
    high: float | None = None
    seen_low: float | None = None
    seen_high: float | None = None
    categories: tuple[str, ...] = ()
    description: str = ""

    @classmethod
    def from_card(cls, raw: Any) -> TabularField:
        known = cls.__dataclass_fields__
        if not isinstance(raw, Mapping) or set(raw) - set(known) or not {"name", "modality", "kind"} <= set(raw):
            raise AdapterRefused("A field in the card's head is not described as this version does; train it again.")
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        field = cls(**values)
        if field.kind not in KINDS or (field.kind == CATEGORY) != bool(field.categories):
            raise AdapterRefused(f"The card's field {field.name!r} is neither a number nor a category with words.")
        return field

    def read(self, cell: Cell) -> tuple[int, float | str | None]:
        """The state of a cell and its value (a float, or a category's word); refused where it cannot be this field."""
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            return MISSING, None
        return self._category(cell) if self.kind == CATEGORY else self._number(cell)

    def is_unusual(self, cell: Cell) -> bool:
        """A number outside the range of the training rows."""
        state, value = self.read(cell)
        if state != VALUE or not isinstance(value, float) or self.seen_low is None or self.seen_high is None:
            return False
        return not self.seen_low <= value <= self.seen_high

    def _category(self, cell: Cell) -> tuple[int, str]:
        if cell not in self.categories:
            raise InvalidRequest(
                f"The field {self.name!r} is {cell!r}; it must be one of {', '.join(self.categories)}, or null.",
                param=self.name,
            )
        return VALUE, str(cell)

    def _number(self, cell: Cell) -> tuple[int, float | None]:
        if isinstance(cell, bool) or (isinstance(cell, str) and cell.strip().lower() not in _CENSORED):
            unit = f" in {self.unit}" if self.unit else ""
            raise InvalidRequest(
                f"The field {self.name!r} is {cell!r}; it must be a number{unit}, '-inf' or 'inf' where it is below or above "
                "detection, or null.",
                param=self.name,
            )
        value = float(cell)  # type: ignore[arg-type]
        if math.isnan(value):
            raise InvalidRequest(f"The field {self.name!r} is not a number; write null where it is missing.", param=self.name)
        if math.isinf(value):
            return (ABOVE if value > 0 else BELOW), None
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            unit = f" {self.unit}" if self.unit else ""
            raise InvalidRequest(
                f"The field {self.name!r} is {value:g}{unit}; possible are {_bound(self.low)} to {_bound(self.high)}{unit}. "
                "Is it in another unit?",
                param=self.name,
            )
        return VALUE, value


_CENSORED = ("inf", "+inf", "-inf")


def read_fields(card: AdapterCard) -> tuple[TabularField, ...]:
    """The fields a fusion card describes, without its tensors."""
    return tuple(TabularField.from_card(raw) for raw in card.head.get("fields", ()))


def check_table(fields: Sequence[TabularField], table: Mapping[str, Cell]) -> None:
    """Every name is known and every cell can be its field's; InvalidRequest names the first that cannot."""
    by_name = {field.name: field for field in fields}
    unknown = sorted(set(table) - set(by_name))
    if unknown:
        known = ", ".join(by_name) or "none: this adapter reads no table"
        raise InvalidRequest(f"The field {unknown[0]!r} is not one of this adapter's; known are {known}.", param=unknown[0])
    for name, cell in table.items():
        by_name[name].read(cell)


def _bound(value: float | None) -> str:
    return "any number" if value is None else f"{value:g}"
