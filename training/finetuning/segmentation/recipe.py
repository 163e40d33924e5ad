"""Recipe of the segmentation task: which masks are learnt, in which words, and how clicks are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.tasks.segmentation import TASK
from foundation.errors import InvalidRequest
from training.augment import AugmentStrength
from training.finetuning.job import FinetuneJob
from training.finetuning.recipe import PaceRecipe, RowsRecipe, TaskRecipe
from training.finetuning.segmentation.masks import MaskRecipe, class_names
from training.finetuning.segmentation.phrases import Phrase, check_phrases

_MOVED = AugmentStrength(
    rotate_degrees=10.0, zoom=0.2, shift=0.06, gamma=0.4, contrast=0.3, brightness=0.1, noise=0.02, erase=0.1
)


@dataclass(frozen=True)
class MaskDataRecipe(RowsRecipe):
    """masks: where they are. film_height_mm: taken for films that carry no spacing; 0 measures those in pixels.

    unions: names for several classes together, which are scored as well. context: volumes only; how many slices away
    the neighbours are that each slice is shown with, 0 for none.
    """

    masks: tuple[MaskRecipe, ...] = ()
    film_height_mm: float = 0.0
    unions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    context: int = 0


@dataclass(frozen=True)
class SegmentationViews:
    """blanks: share of films replaced by a picture that holds nothing; spoken: share of batches asked in the words of
    head.phrases.
    """

    strength: AugmentStrength = field(default_factory=lambda: _MOVED)
    blanks: float = 0.04
    spoken: float = 0.3


@dataclass(frozen=True)
class ClickRecipe:
    """How clicks and boxes are learnt, after the words: `rounds` of them on each film. epochs 0: not at all."""

    epochs: int = 8
    rounds: int = 3
    rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.rounds < 1:
            raise InvalidRequest("clicks.epochs must be 0 or more, and clicks.rounds 1 or more.", param="clicks")


@dataclass(frozen=True)
class SegmentationHeadRecipe:
    """templates: sentences whose mean embedding a class starts from. phrases: what free words mean.

    parts: how many connected parts a class has at most; 0: any number.
    """

    templates: tuple[str, ...] = ("{}", "the {}", "a film showing the {}")
    phrases: tuple[Phrase, ...] = ()
    parts: int = 0


@dataclass(frozen=True)
class SegmentationRecipe(TaskRecipe):
    task: str = TASK
    data: MaskDataRecipe = field(default_factory=MaskDataRecipe)
    head: SegmentationHeadRecipe = field(default_factory=SegmentationHeadRecipe)
    views: SegmentationViews = field(default_factory=SegmentationViews)
    clicks: ClickRecipe = field(default_factory=ClickRecipe)
    training: PaceRecipe = field(default_factory=lambda: PaceRecipe(batch_size=8, head_rate=2e-3))

    def __post_init__(self) -> None:
        if not self.data.masks:
            raise InvalidRequest("data.masks is empty: say which manifest field holds which classes.", param="masks")
        check_phrases(self.head.phrases, class_names(self.data.masks))
        odd = sorted({part for parts in self.data.unions.values() for part in parts} - set(class_names(self.data.masks)))
        if odd:
            raise InvalidRequest(f"data.unions name classes that data.masks do not hold: {', '.join(odd)}.", param="unions")
        for name in ("blanks", "spoken"):
            if not 0.0 <= getattr(self.views, name) <= 1.0:
                raise InvalidRequest(f"views.{name} must lie from 0 to 1.", param=name)


Job = FinetuneJob[SegmentationRecipe]
