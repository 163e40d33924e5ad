"""What is to be learnt of each film: labels in groups, each asked only of the films that its source speaks of.

    LabelTable.truth(rows)   (N, K): 1 holds, 0 does not, NaN unknown

A film outside a group's rows says nothing of the group's labels: they are masked, never negatives. An uncertain label (a
row's `uncertain` list, as CheXpert's -1) counts in training as the recipe says and is never scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.tasks.classification import NORMAL
from foundation.errors import InvalidRequest, ManifestError
from training.finetuning.recipe import DataRecipe, LabelGroup
from training.manifests.manifest import Manifest, Row, parse_where

Truth = npt.NDArray[np.float32]
POLICIES = {"ignore": float("nan"), "ones": 1.0, "zeros": 0.0, "soft": 0.6}


@dataclass(frozen=True)
class LabelTable:
    """The groups in order; a label is in one group only."""

    groups: tuple[LabelGroup, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for group in self.groups for label in group.labels)

    @property
    def exclusive(self) -> tuple[tuple[int, ...], ...]:
        """The columns of each group of which exactly one label holds."""
        places = {label: column for column, label in enumerate(self.labels)}
        return tuple(tuple(places[label] for label in group.labels) for group in self.groups if not group.multi_label)

    @property
    def is_one_choice(self) -> bool:
        """Whether all labels are the classes of one choice."""
        return len(self.exclusive) == len(self.groups) == 1

    @property
    def is_multi_label(self) -> bool:
        """Whether no film's labels exclude one another."""
        return not self.exclusive

    def truth(self, rows: Sequence[Row], uncertain: str = "ignore") -> Truth:
        """(N, K) float32, see above. ManifestError where a film has not exactly one class of a group."""
        table = np.full((len(rows), len(self.labels)), np.nan, np.float32)
        column = 0
        for group in self.groups:
            clauses = parse_where(group.where or None)
            for place, row in enumerate(rows):
                if all(set(row.words(name)) & set(values) for name, values in clauses.items()):
                    table[place, column : column + len(group.labels)] = _of_row(row, group, uncertain)
            column += len(group.labels)
        return table


def choose_table(rows: Manifest, recipe: DataRecipe) -> LabelTable:
    """The recipe's groups, or one of its labels, or one of every label of the training rows; all occur in train and val."""
    seen = {split: {label for row in rows.of(split) for label in row.labels} for split in ("train", "val")}
    found = seen["train"] - ({NORMAL} if recipe.multi_label else set())
    labels = recipe.labels or tuple(sorted(found))
    if not labels and not recipe.heads:
        raise InvalidRequest(f"The training rows have no label besides {NORMAL!r}: nothing can be learnt.", param="labels")
    table = LabelTable(recipe.heads or (LabelGroup("labels", labels, recipe.multi_label),))
    twice = sorted({label for label in table.labels if table.labels.count(label) > 1})
    if twice:
        raise InvalidRequest(f"The label {twice[0]!r} is in more than one group of data.heads.", param="heads")
    odd = [label for pair in recipe.contrasts for label in pair if label not in table.labels]
    if odd:
        raise InvalidRequest(f"data.contrasts names {odd[0]!r}, which is not among the labels.", param="contrasts")
    for split, present in seen.items():
        absent = ", ".join(repr(label) for label in table.labels if label not in present)
        if absent:
            raise InvalidRequest(f"No {split} row has the label {absent}; correct or drop it.", param="labels")
    return table


def _of_row(row: Row, group: LabelGroup, uncertain: str) -> list[float]:
    held = [float(label in row.labels) for label in group.labels]
    if not group.multi_label and sum(held) != 1:
        raise ManifestError(
            f"Row {row.number} has not exactly one of the labels {', '.join(group.labels)}; filter it out or set "
            "multi_label = true."
        )
    if group.multi_label:
        doubted = row.get("uncertain") or ()
        for place, label in enumerate(group.labels):
            if label in doubted:
                held[place] = POLICIES[uncertain]
    return held
