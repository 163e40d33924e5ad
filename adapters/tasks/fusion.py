"""The fusion task: one outcome from films, a note and fields of a table, any of them absent.

This file holds what is answered and who answers it; the network stands in `fusion_head.py`, the fields in `tabular.py`,
the sentences cut from notes in `outcomes.py`, the Shapley account in `account.py`.

Each subset of modalities has a rule, fitted on patients its network had not seen: who answers for it (the joint network,
the product of experts, or the best single expert, where the other two are no better) and how that logit becomes a
probability. So no subset is answered worse, there, than by the best single modality in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.card import AdapterCard
from adapters.tasks.account import Subset, shapley, subsets_of
from adapters.tasks.contributions import contributions
from adapters.tasks.fusion_head import JOINT, NOTE, PRODUCT, FusionHead, FusionInputs, HasLevels, HeadShape
from adapters.tasks.heads import bind_head, head_options
from adapters.tasks.tabular import Cell, TabularField, check_table, read_fields
from foundation.errors import AdapterRefused, InvalidRequest

TASK = "fusion"
MAX_MODALITIES = 6
MAX_LISTED = 4  # modalities up to which every subset is listed
_OPTIONS = ("shape", "modalities", "fields", "rules", "prior", "conformal_absent")


@dataclass(frozen=True)
class SubsetRule:
    """Who answers for a subset, and its calibration: logit = slope * raw + bias; cases: what that was fitted on.

    single: the modality of the subset that alone did best there.
    """

    modalities: Subset
    method: str
    single: str
    slope: float = 1.0
    bias: float = 0.0
    cases: int = 0


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
    unusual: fields whose value lies outside the range of the training rows. contributions: what each number of the table
    moved the logit, see `contributions.py`; None where it was not asked for.
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
    contributions: Mapping[str, float] | None = None

    @property
    def is_positive(self) -> bool:
        return self.probability >= self.threshold


@dataclass(frozen=True, eq=False)
class FusionPredictor:
    """A head with its card: what is known of one patient in, a FusionResult out.

    modalities: "film", "note" where notes are read, and the groups of fields, in the order of the head.
    """

    card: AdapterCard
    head: FusionHead
    fields: tuple[TabularField, ...]
    modalities: tuple[str, ...]
    rules: Mapping[Subset, SubsetRule]

    @classmethod
    def open(cls, card: AdapterCard, tensors: Mapping[str, Tensor]) -> FusionPredictor:
        """Bind the head's tensors; AdapterRefused where one is missing, unexpected or of another shape."""
        options = head_options(card, TASK, _OPTIONS)
        fields = read_fields(card)
        modalities = tuple(options["modalities"])
        try:
            shape = HeadShape(**{name: int(value) for name, value in dict(options["shape"]).items()})
            rules = [SubsetRule(**{**rule, "modalities": tuple(rule["modalities"])}) for rule in options["rules"]]
        except (TypeError, ValueError, KeyError):
            raise AdapterRefused("The shape or the rules in the card's head are not as this version writes them.") from None
        by_subset = {rule.modalities: rule for rule in rules}
        methods = (*modalities, PRODUCT, JOINT)
        if set(by_subset) != set(subsets_of(modalities)) or any(rule.method not in methods for rule in rules):
            raise AdapterRefused("The card's head must hold one rule for each subset of its modalities.")
        if len(card.labels) != 1 or {field.modality for field in fields} - set(modalities):
            raise AdapterRefused("A fusion adapter has one label, and fields of its own modalities only.")
        return cls(card, bind_head(FusionHead(shape, modalities, fields), tensors), fields, modalities, by_subset)

    @property
    def label(self) -> str:
        return self.card.labels[0]

    @property
    def reads_notes(self) -> bool:
        """Notes go through `outcomes.remove_outcomes` and the backbone's `encode_text` before they come here."""
        return NOTE in self.modalities

    @property
    def prior_logit(self) -> float:
        return float(self.card.head["prior"])

    def check(self, tabular: Mapping[str, Cell]) -> None:
        """InvalidRequest where a field is unknown, of the wrong kind, or outside what is possible."""
        check_table(self.fields, tabular)

    def __call__(
        self,
        images: Sequence[HasLevels],
        text: Tensor | None = None,
        tabular: Mapping[str, Cell] | None = None,
        *,
        with_contributions: bool = False,
    ) -> FusionResult:
        """images: features under this adapter; every row of every batch is a film of this one patient. Empty: no film.

        text: (E,) or (1, E), the embedding of the cleaned note; None where there is none. tabular: by field name; what
        is not given is missing, and a group of which every field is missing is absent.
        InvalidRequest where nothing is given at all, or a note is given to an adapter that reads none.
        """
        table = dict(tabular or {})
        self.check(table)
        if text is not None and not self.reads_notes:
            raise InvalidRequest(f"The adapter {self.card.name!r} reads no notes; leave the text out.", param="text")
        unusual = tuple(field.name for field in self.fields if field.is_unusual(table.get(field.name)))
        inputs = self.read(images, text, table)
        result = self.judge(inputs, unusual)
        return replace(result, contributions=contributions(self, inputs)) if with_contributions else result

    def logits(self, inputs: FusionInputs) -> Tensor:
        """(B,) the answer's logit for patients of whom the same is present, with gradients."""
        present = tuple(name for name, is_there in zip(self.modalities, inputs.present[0].tolist(), strict=True) if is_there)
        rule = self.rules[present]
        raw: Tensor = self.head(inputs).mean(dim=0)[:, self.head.methods.index(rule.method)]
        return rule.slope * raw + rule.bias

    def judge(self, inputs: FusionInputs, unusual: tuple[str, ...] = ()) -> FusionResult:
        """The result for one patient's inputs, a batch of one."""
        present = tuple(name for name, is_there in zip(self.modalities, inputs.present[0].tolist(), strict=True) if is_there)
        if not present:
            known = ", ".join(self.modalities)
            raise InvalidRequest(f"Nothing is given to judge by; give at least one of: {known}.", param="images")
        return self._result(self.answers(inputs, present), present, unusual)

    @torch.no_grad()
    def read(self, images: Sequence[HasLevels], text: Tensor | None, table: Mapping[str, Cell]) -> FusionInputs:
        """The head's inputs for one patient."""
        films = [self.head.read_films(features) for features in images]
        seen = (torch.cat([film for film, _ in films]), torch.cat([patch for _, patch in films])) if films else None
        note = None if text is None else self.head.read_note(text.reshape(1, -1))[0]
        return self.head.gather([seen], [note], [table])

    @torch.no_grad()
    def answers(self, inputs: FusionInputs, present: Subset) -> dict[Subset, SubsetAnswer]:
        """The answer of every subset of what is present of one patient, small ones first."""
        subsets = subsets_of(present)
        masks = torch.tensor([[name in subset for name in self.modalities] for subset in subsets])
        every = inputs.take(torch.zeros(len(subsets), dtype=torch.long)).with_present(masks.to(inputs.present.device))
        raw = self.head(every).mean(dim=0).double().cpu()  # (subsets, M + 2)
        made = {}
        for row, subset in zip(raw.tolist(), subsets, strict=True):
            rule = self.rules[subset]
            logit = rule.slope * row[self.head.methods.index(rule.method)] + rule.bias
            made[subset] = SubsetAnswer(subset, sigmoid(logit), logit, rule.method)
        return made

    def _result(self, answers: Mapping[Subset, SubsetAnswer], present: Subset, unusual: tuple[str, ...]) -> FusionResult:
        full = answers[present]
        logits = {(): self.prior_logit} | {subset: answer.logit for subset, answer in answers.items()}
        return FusionResult(
            label=self.label,
            probability=full.probability,
            logit=full.logit,
            prior=sigmoid(self.prior_logit),
            threshold=self.card.thresholds[0] if self.card.thresholds else 0.5,
            method=full.method,
            present=present,
            absent=tuple(name for name in self.modalities if name not in present),
            unimodal={name: answers[(name,)].probability for name in present},
            subsets=tuple(answers.values()) if len(present) <= MAX_LISTED else (),
            shapley=shapley(present, logits),
            conformal=self._conformal(full.probability),
            unusual=unusual,
        )

    def _conformal(self, probability: float) -> tuple[str, ...]:
        if not self.card.conformal.thresholds:
            return ()
        is_in = (probability >= self.card.conformal.thresholds[0], 1 - probability >= float(self.card.head["conformal_absent"]))
        return tuple(name for name, there in zip((self.label, f"no {self.label}"), is_in, strict=True) if there)


def sigmoid(logit: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * logit))
