"""Fine-tuning recipes: what all tasks share, and classification's. Unknown keys are errors (`training/recipe.py`).

`FinetuneRecipe` is classification's; the other tasks' stand in their own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.tasks.classification import NORMAL
from adapters.tasks.levels import misnamed_pools
from foundation.errors import InvalidRequest
from training.augment import AugmentStrength

LOSSES = ("bce", "asymmetric", "focal")
CLASS_LOSSES = ("ce", "logit_adjusted", "focal")
STORAGES = ("float16", "float32")
UNCERTAIN = ("ignore", "ones", "zeros", "soft")
GENTLE = AugmentStrength(
    rotate_degrees=7.0, zoom=0.1, shift=0.04, gamma=0.25, contrast=0.2, brightness=0.06, noise=0.015, erase=0.0
)


@dataclass(frozen=True)
class RowsRecipe:
    """Which rows. where: clauses such as "source=nih_cxr14"; licence_classes: the only ones used, all where empty.

    patient_balance: 0 draws every film equally often, 1 every patient. columns: what the manifest calls our fields, for
    one that was not written for us: `[data.columns] image = "path"`.
    """

    where: tuple[str, ...] = ()
    licence_classes: tuple[str, ...] = ()
    patient_balance: float = 0.5
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelGroup:
    """Labels that are learnt and scored among the rows that match `where` only; elsewhere they are unknown.

    multi_label: any of them may hold; otherwise exactly one does, and "normal" may be a class among them.
    """

    name: str
    labels: tuple[str, ...]
    multi_label: bool = True
    where: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if NORMAL in self.labels and self.multi_label:
            raise InvalidRequest(
                f"{NORMAL!r} is the absence of the labels and is derived from them; take it out of the labels.",
                param="labels",
            )
        if not self.labels or (not self.multi_label and len(self.labels) < 2):
            raise InvalidRequest(f"The group {self.name!r} has too few labels to choose from.", param="labels")


@dataclass(frozen=True)
class DataRecipe(RowsRecipe):
    """Which labels. Empty `labels` means every label of the training rows ("normal" only where it is a class).

    heads: groups of labels in place of `labels` and `multi_label`, for several tasks at once.
    uncertain: what a label in a row's `uncertain` list counts as in training; it is never scored.
    phantoms: synthetic films that join the training rows, where their findings are among the labels.
    contrasts: pairs of labels told apart in the report, among the films that carry one of the two.
    studies: the films of rows that share a `study_id` are one item, pooled by attention (`adapters/tasks/study.py`).
    shots: learn from this many films of each label (and of none), for three seeds; 0 learns from all.
    blind_to: a field of the rows, such as "orig_size", that says how a film was kept. Labels of training films that it alone
    tells are read from levels without it (`training/erasure.py`); "" reads all from levels as they are.
    """

    labels: tuple[str, ...] = ()
    multi_label: bool = True
    heads: tuple[LabelGroup, ...] = ()
    uncertain: str = "ignore"
    phantoms: int = 0
    contrasts: tuple[tuple[str, ...], ...] = ()
    studies: bool = False
    shots: int = 0
    blind_to: str = ""


@dataclass(frozen=True)
class LoraRecipe:
    """first_block: the lowest block that is adapted (negative: from the end); below it features are computed once."""

    rank: int = 8
    alpha: float = 16.0
    use_rslora: bool = False
    first_block: int = 0


@dataclass(frozen=True)
class HeadRecipe:
    """The prompts the head starts from; without `negatives` only the positive side is used.

    pools: how the tower's levels are pooled for the linear reading of them (mean, max, std); empty reads none.
    penalties: what its L2 penalty is chosen from on validation, before fine-tuning begins (`training/level_fit.py`).
    sizes: at which the base looks at each film besides, enlarged, its levels being read too; [] looks once.
    size_pools: how the levels are pooled at those sizes; [] is as `pools`.
    mirrored: whether the base looks at each film's mirror image as well, the levels of both being averaged.
    """

    templates: tuple[str, ...] = ("there is {}", "evidence of {}", "findings consistent with {}")
    negatives: tuple[str, ...] = ("there is no {}", "no evidence of {}", "without {}")
    pools: tuple[str, ...] = ("mean",)
    penalties: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03)
    sizes: tuple[int, ...] = ()
    size_pools: tuple[str, ...] = ()
    mirrored: bool = False


@dataclass(frozen=True)
class ViewRecipe:
    """Augmentation. `cached` views of each training film pass the frozen blocks once, the film itself being the first.

    With cached = 0 films are augmented anew in every epoch and pass the whole tower: slower, and more varied.
    altered: the test films are scored a second time after this, as another hospital's scanner might give them.
    """

    cached: int = 2
    strength: AugmentStrength = field(default_factory=lambda: GENTLE)
    altered: AugmentStrength | None = None


@dataclass(frozen=True)
class PaceRecipe:
    """How long and how fast. patience: epochs without a better validation before training stops.

    average: the share of itself that a running mean of the weights keeps at each step; the mean is what is validated
    and kept. 0 keeps the weights as they are. precision: "fp32", or "bf16" where the device multiplies bfloat16.
    storage: "float16" rounds adapter and head once training is over, before anything is scored, and stores them so;
    "float32" keeps every digit.
    """

    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1
    lora_rate: float = 2e-4
    head_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    patience: int = 3
    precision: str = "fp32"
    average: float = 0.0
    storage: str = "float16"

    def __post_init__(self) -> None:
        if self.storage not in STORAGES:
            known = ", ".join(STORAGES)
            raise InvalidRequest(f"training.storage is {self.storage!r}; choose one of {known}.", param="storage")


@dataclass(frozen=True)
class TrainingRecipe(PaceRecipe):
    """max_positive_weight: positives of rare findings count up to this much more (1: no weighting).

    loss: of multi-label groups; class_loss: of the others. level_rate, level_decay: of the linear reading of the levels.
    mixup: films are blended with others of their batch by a share from Beta(mixup, mixup); 0 blends none.
    """

    loss: str = "bce"
    class_loss: str = "ce"
    max_positive_weight: float = 4.0
    label_smoothing: float = 0.0
    level_rate: float = 1e-5
    level_decay: float = 0.1
    mixup: float = 0.0


@dataclass(frozen=True)
class CardRecipe:
    """Words for the adapter's card."""

    description: str = ""
    licence: str = ""
    citations: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskRecipe:
    """What the recipes of all tasks have. Each narrows `data` and adds what its head and its views need."""

    name: str
    task: str
    seed: int = 0
    data: RowsRecipe = field(default_factory=RowsRecipe)
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    training: PaceRecipe = field(default_factory=PaceRecipe)
    card: CardRecipe = field(default_factory=CardRecipe)


@dataclass(frozen=True)
class FinetuneRecipe(TaskRecipe):
    task: str = "classification"
    data: DataRecipe = field(default_factory=DataRecipe)
    head: HeadRecipe = field(default_factory=HeadRecipe)
    views: ViewRecipe = field(default_factory=ViewRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)

    def __post_init__(self) -> None:
        chosen = {
            "training.loss": (self.training.loss, LOSSES),
            "training.class_loss": (self.training.class_loss, CLASS_LOSSES),
            "data.uncertain": (self.data.uncertain, UNCERTAIN),
        }
        for name, (value, known) in chosen.items():
            if value not in known:
                raise InvalidRequest(f"{name} is {value!r}; choose one of {', '.join(known)}.", param=name.split(".")[1])
        if not 0.0 <= self.training.label_smoothing < 0.5:
            raise InvalidRequest("training.label_smoothing must lie from 0 to below 0.5.", param="label_smoothing")
        if NORMAL in self.data.labels and self.data.multi_label:
            raise InvalidRequest(
                f"{NORMAL!r} is the absence of the labels and is derived from them; take it out of data.labels.",
                param="labels",
            )
        if any(len(pair) != 2 for pair in self.data.contrasts):
            raise InvalidRequest('data.contrasts holds pairs of labels, such as [["a", "b"]].', param="contrasts")
        if self.data.shots < 0 or (self.data.shots and (self.head.pools or self.data.studies)):
            raise InvalidRequest(
                "data.shots must be 0 or more; few films are learnt from without levels and studies: set head.pools = [] "
                "and data.studies = false.",
                param="shots",
            )
        if self.data.heads and self.data.labels:
            raise InvalidRequest("Name the labels in data.labels or in data.heads, not in both.", param="labels")
        if self.head.pools and not self.head.penalties:
            raise InvalidRequest("head.penalties must name at least one penalty where levels are read.", param="penalties")
        if (self.head.sizes or self.head.mirrored) and not (self.head.pools and self.views.cached == 1):
            raise InvalidRequest(
                "head.sizes and head.mirrored read films as they are, from their levels: set head.pools and views.cached = 1, "
                "or sizes = [] and mirrored = false.",
                param="sizes",
            )
        if wrong := misnamed_pools((*self.head.pools, *self.head.size_pools)):
            raise InvalidRequest(wrong, param="pools")
        if self.head.size_pools and not self.head.sizes:
            raise InvalidRequest(
                "head.size_pools says how levels are pooled at head.sizes, and there are none: name sizes or leave it out.",
                param="size_pools",
            )
        if self.data.blind_to and not self.head.pools:
            raise InvalidRequest(
                'data.blind_to takes a field out of the levels: set head.pools, or blind_to = "".', param="blind_to"
            )
        if self.views.cached < 0:
            raise InvalidRequest("views.cached must be 0 or more.", param="cached")
