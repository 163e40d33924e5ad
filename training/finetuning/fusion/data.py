"""From manifest rows to the cases of the fusion task: films, a cleaned note, a table, and whether the outcome came.

A case is one row, or all rows that share the value of `case`. Its table is read with what was known when the film was
taken: a value with a time column is used only where that time is not after the film.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adapters.tasks.fusion_head import FILM, KNOTS, NOTE
from adapters.tasks.outcomes import remove_outcomes
from adapters.tasks.tabular import CATEGORY, KINDS, NUMBER, VALUE, Cell, TabularField
from foundation.errors import InvalidRequest, ManifestError
from training.finetuning.recipe import RowsRecipe
from training.manifests.manifest import Row
from training.manifests.row import FIELDS

Floats = npt.NDArray[np.float64]
MADE_OF_QUARTILES = 1.349  # standard deviations between the quartiles of a normal distribution


@dataclass(frozen=True)
class OutcomeRecipe:
    """What is predicted. column: where it stands (`tabular`, another field, or "labels", which holds `label` or not).

    positive, negative: the words that mean yes and no, other rows telling nothing; without them any value means yes and
    null means no; a row without the column tells nothing.
    """

    label: str
    column: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class FieldRecipe:
    """One input field, by its name in `tabular` or among the row's own fields.

    known_by: the field with the time of the value, 0 being the film's; later values are not used. low, high: what is
    physically possible. categories: its words; empty means those of the training rows.
    """

    name: str
    modality: str = "laboratory"
    kind: str = NUMBER
    unit: str = ""
    low: float | None = None
    high: float | None = None
    known_by: str = ""
    categories: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class FusionDataRecipe(RowsRecipe):
    """outcomes: columns that tell how it ended; a field of that name is an error. note: read `text` as well.

    case: the field whose value joins rows into one case of several films; empty means a case a row.
    """

    outcome: OutcomeRecipe = OutcomeRecipe("", "")
    outcomes: tuple[str, ...] = ()
    field: tuple[FieldRecipe, ...] = ()
    note: bool = False
    case: str = ""

    def __post_init__(self) -> None:
        names = [field.name for field in self.field]
        told = {self.outcome.column, *self.outcomes, *(field.known_by for field in self.field)} - {""}
        if not self.outcome.label or not self.outcome.column:
            raise InvalidRequest("data.outcome must name a label and the column it is read from.", param="outcome")
        for name in names:
            if name in told:
                raise InvalidRequest(f"The field {name!r} tells the outcome or a time; it cannot be an input.", param=name)
            if names.count(name) > 1:
                raise InvalidRequest(f"The field {name!r} is listed twice in data.field.", param=name)
        for field in self.field:
            if field.kind not in KINDS or field.modality in ("", FILM, NOTE):
                raise InvalidRequest(
                    f"The field {field.name!r} must be of a kind ({' or '.join(KINDS)}) and of a modality other than "
                    f"{FILM!r} and {NOTE!r}.",
                    param=field.name,
                )

    @property
    def modalities(self) -> tuple[str, ...]:
        return (FILM, *((NOTE,) if self.note else ()), *dict.fromkeys(field.modality for field in self.field))


@dataclass(frozen=True, eq=False)
class Case:
    """One patient at one time. rows: a film each; note: cleaned, None where nothing is left; removed: sentences cut."""

    rows: tuple[Row, ...]
    truth: bool
    table: Mapping[str, Cell]
    note: str | None = None
    removed: int = 0

    @property
    def patient(self) -> str:
        return self.rows[0].patient_id

    @property
    def split(self) -> str:
        return self.rows[0].split


@dataclass(frozen=True, eq=False)
class FieldStatistics:
    """Of the training rows, in the order of the fields; zeros and ones for categories. knots (F, KNOTS)."""

    centre: Floats
    spread: Floats
    knots: Floats


def outcome_of(row: Row, outcome: OutcomeRecipe) -> bool | None:
    """Whether it came; None where the row does not tell."""
    if outcome.column == "labels":
        return outcome.label in row.labels if row.is_labelled else None
    value = value_of(row, outcome.column)
    if not outcome.positive and not outcome.negative:
        has_column = outcome.column in FIELDS or outcome.column in row.tabular or outcome.column in row.extra
        return value is not None if has_column else None
    word = None if value is None else str(value)
    return True if word in outcome.positive else False if word in outcome.negative else None


def value_of(row: Row, name: str) -> Cell:
    """A field of the table, or else of the row itself; None where it is missing."""
    value: Cell = row.tabular[name] if name in row.tabular else row.get(name)
    return None if isinstance(value, str) and not value.strip() else value


def read_cases(rows: Sequence[Row], recipe: FusionDataRecipe) -> tuple[Case, ...]:
    """The cases whose outcome is told, in the order of the rows; cells that cannot be their field's name row and remedy."""
    check_columns(rows, recipe)
    held: dict[str, list[Row]] = {}
    for row in rows:
        held.setdefault(str(row.get(recipe.case)) if recipe.case else row.id, []).append(row)
    cases = []
    for key, own in held.items():
        if len({(row.patient_id, row.split) for row in own}) > 1:
            raise ManifestError(f"The case {key!r} (row {own[0].number}) has rows of several patients or splits; correct it.")
        truth = next((told for row in own if (told := outcome_of(row, recipe.outcome)) is not None), None)
        if truth is None:
            continue
        note = " ".join(dict.fromkeys(row.text for row in own if row.text)) if recipe.note else ""
        clean = remove_outcomes(note)
        table = {field.name: _cell(own, field) for field in recipe.field}
        cases.append(Case(tuple(own), truth, table, clean.text or None, len(clean.removed)))
    return tuple(cases)


def describe_fields(recipe: FusionDataRecipe, cases: Sequence[Case]) -> tuple[tuple[TabularField, ...], FieldStatistics]:
    """The fields as the card tells them, and their statistics, both from `cases` (which are learnt from)."""
    fields, centre, spread, knots = [], [], [], []
    for asked in recipe.field:
        cells = [case.table[asked.name] for case in cases]
        plain = _plain(asked)
        if asked.kind == CATEGORY:
            words = asked.categories or tuple(sorted({str(cell) for cell in cells if cell is not None}))
            plain = replace(plain, categories=words)
        values = np.zeros(1) if asked.kind == CATEGORY else np.array([value for cell in cells for value in _value(plain, cell)])
        if not len(values) or (asked.kind == CATEGORY and not plain.categories):
            raise InvalidRequest(f"No training row has a value of the field {asked.name!r}; take it out.", param=asked.name)
        if asked.kind == NUMBER:
            plain = replace(plain, seen_low=float(values.min()), seen_high=float(values.max()))
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        fields.append(plain)
        centre.append(middle)
        spread.append((high - low) / MADE_OF_QUARTILES or values.std() or 1.0)
        knots.append(np.quantile(values, np.linspace(0, 1, KNOTS)))
    return tuple(fields), FieldStatistics(np.array(centre), np.array(spread), np.reshape(knots, (len(fields), KNOTS)))


def patient_weights(cases: Sequence[Case], balance: float) -> Floats:
    """(N,) with mean one: a case of a patient with n cases weighs n^-balance."""
    count = Counter(case.patient for case in cases)
    weights = np.array([count[case.patient] ** -balance for case in cases])
    return np.asarray(weights / weights.mean())


def _value(field: TabularField, cell: Cell) -> tuple[float, ...]:
    """The number in the cell of a number's field; none where it is missing or beyond detection."""
    state, value = field.read(cell)
    return (float(value),) if state == VALUE and value is not None else ()


def _plain(asked: FieldRecipe) -> TabularField:
    categories = asked.categories or (("",) if asked.kind == CATEGORY else ())
    return TabularField(
        asked.name, asked.modality, asked.kind, asked.unit, asked.low, asked.high, None, None, categories, asked.description
    )


def check_columns(rows: Sequence[Row], recipe: FusionDataRecipe) -> None:
    """Raises InvalidRequest naming a field of the recipe that no row has."""
    names = [recipe.outcome.column, *(field.name for field in recipe.field)]
    names += [field.known_by for field in recipe.field if field.known_by]
    for name in (*names, *((recipe.case,) if recipe.case else ())):
        if not any(name in row.tabular or name in row.extra or row.get(name) is not None for row in rows):
            raise InvalidRequest(f"No row has the field {name!r} that the recipe names; correct or drop it.", param=name)


def _cell(rows: Sequence[Row], field: FieldRecipe) -> Cell:
    """The first value known at the film's time among the rows of a case."""
    plain = _plain(field)
    for row in rows:
        cell = value_of(row, field.name)
        if cell is None or not _is_known(row, field):
            continue
        if field.kind == CATEGORY:
            if field.categories and cell not in field.categories:
                raise ManifestError(
                    f"Row {row.number}: {field.name!r} is {cell!r}; the recipe knows {', '.join(field.categories)}."
                )
            return str(cell)
        number = _number(cell)
        try:
            plain.read(number)
        except InvalidRequest as error:
            raise ManifestError(f"Row {row.number}: {error.message}", param=field.name) from None
        return number
    return None


def _is_known(row: Row, field: FieldRecipe) -> bool:
    if not field.known_by:
        return True
    time = _number(value_of(row, field.known_by))
    if time is None:
        return False
    if not isinstance(time, float) or math.isnan(time):
        raise ManifestError(f"Row {row.number}: the time {field.known_by!r} is {time!r}; write a number.", param=field.known_by)
    return time <= 0


def _number(cell: Cell) -> Cell:
    """Words that are numbers become numbers ("38.5", "-inf"); others stay, to be refused by the field."""
    try:
        return cell if cell is None or isinstance(cell, bool) else float(cell)
    except ValueError:
        return cell
