"""FusionRecipe: every option of a run of the fusion task."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapters.tasks.fusion import MAX_MODALITIES, TASK
from foundation.errors import InvalidRequest
from training.augment import AugmentStrength
from training.finetuning.fusion.data import FusionDataRecipe
from training.finetuning.fusion.fit import FusionHeadRecipe
from training.finetuning.job import FinetuneJob
from training.finetuning.recipe import LoraRecipe, PaceRecipe, TaskRecipe

_GENTLE = AugmentStrength(
    rotate_degrees=5.0, zoom=0.08, shift=0.03, gamma=0.25, contrast=0.2, brightness=0.06, noise=0.015, border=0.0, erase=0.0
)


@dataclass(frozen=True)
class FusionViews:
    """Altered views of each film, for LoRA; at least two, the film itself being the first."""

    cached: int = 3
    strength: AugmentStrength = field(default_factory=lambda: _GENTLE)


@dataclass(frozen=True)
class FusionRecipe(TaskRecipe):
    task: str = TASK
    data: FusionDataRecipe = field(default_factory=lambda: FusionDataRecipe())
    lora: LoraRecipe = field(default_factory=lambda: LoraRecipe(rank=2, alpha=2.0, first_block=-1))
    head: FusionHeadRecipe = field(default_factory=FusionHeadRecipe)
    views: FusionViews = field(default_factory=FusionViews)
    training: PaceRecipe = field(default_factory=lambda: PaceRecipe(epochs=3, batch_size=16))

    def __post_init__(self) -> None:
        if self.views.cached < 2:
            raise InvalidRequest("views.cached must be at least 2 for fusion.", param="cached")
        if len(self.data.modalities) > MAX_MODALITIES:
            raise InvalidRequest(f"At most {MAX_MODALITIES} modalities can be accounted for; join some.", param="modality")


Job = FinetuneJob[FusionRecipe]
