"""The fusion task: one outcome from films, a note and fields of a table, any of them absent.

This file holds what is answered and who answers it; the network stands in `fusion_head.py`, the fields in `tabular.py`,
the sentences cut from notes in `outcomes.py`, the Shapley account in `account.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from adapters.card import AdapterCard
from adapters.tasks.account import Subset
from adapters.tasks.classification import HasFeatures
from adapters.tasks.tabular import Cell, TabularField

TASK = "fusion"
FILM, NOTE = "film", "note"


@dataclass(frozen=True)
class SubsetAnswer:
    """What would be answered were only these modalities known. method: "joint", "product", or one modality's name."""

    modalities: Subset
    probability: float
    logit: float
    method: str


@dataclass(frozen=True)
class FusionResult:
    """What the task says about one patient. Probabilities are calibrated; logits are theirs, log p / (1 - p).

    probability: of `label`, from all modalities present; prior: without any. method: see SubsetAnswer.
    conformal: which of (label, "no LABEL") are in the conformal set; empty where the card has none.
    unimodal: each present modality's own probability. subsets: every subset of those present, small ones first; empty
    where more than 4 are present. shapley: each present modality's share of `logit` minus the prior's logit.
    unusual: fields whose value lies outside the range of the training rows.
    """

    label: str
    probability: float
    logit: float
    prior: float
    threshold: float
    method: str
    present: tuple[str, ...]
    absent: tuple[str, ...]
    unimodal: Mapping[str, float]
    subsets: tuple[SubsetAnswer, ...]
    shapley: Mapping[str, float]
    conformal: tuple[str, ...] = ()
    unusual: tuple[str, ...] = ()

    @property
    def is_positive(self) -> bool:
        return self.probability >= self.threshold


@dataclass(frozen=True, eq=False)
class FusionPredictor:
    """A head with its card: what is known of one patient in, a FusionResult out."""

    card: AdapterCard
    fields: tuple[TabularField, ...]
    modalities: tuple[str, ...]  # "film", "note" and the groups of fields, in the order of the head

    @classmethod
    def open(cls, card: AdapterCard, tensors: Mapping[str, Tensor]) -> FusionPredictor:
        """Bind the head's tensors; AdapterRefused where one is missing, unexpected or of another shape."""
        raise NotImplementedError

    @property
    def reads_notes(self) -> bool:
        """Notes go through `outcomes.remove_outcomes` and the backbone's `encode_text` before they come here."""
        return NOTE in self.modalities

    def check(self, tabular: Mapping[str, Cell]) -> None:
        """InvalidRequest where a field is unknown, of the wrong kind, or outside what is possible; needs no torch."""
        raise NotImplementedError

    def __call__(
        self, images: Sequence[HasFeatures], text: Tensor | None = None, tabular: Mapping[str, Cell] | None = None
    ) -> FusionResult:
        """images: features under this adapter, one or many films each (every row of every batch is a film of this patient).

        text: (E,) or (1, E), the embedding of the cleaned note; None where there is none. tabular: by field name; what
        is not given is missing, and a group of which every field is missing is absent.
        InvalidRequest where nothing is given at all, or a note is given to an adapter that reads none.
        """
        raise NotImplementedError
