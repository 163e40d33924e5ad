"""An image tower with LoRA, frozen otherwise and always in evaluation mode: the part all fine-tuning tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.lora import LoraSpec, LoraWeights, apply_lora, read_weights, targets_from
from adapters.tasks.levels import pool_levels
from foundation.backbone import ImageFeatures
from foundation.towers.tower import TowerOutput, TrunkState, block_index
from training.finetuning.job import TrainableBackbone
from training.finetuning.recipe import LoraRecipe, PaceRecipe
from training.loop import ParameterGroup


def level_widths(backbone: TrainableBackbone) -> tuple[int, ...]:
    """The channels of each level."""
    return tuple(int(level.shape[1]) for level in levels_of_black(backbone))


def levels_of_black(backbone: TrainableBackbone) -> tuple[Tensor, ...]:
    """The levels, each (1, D, H, W), of a black picture: their sizes are those of any."""
    size = backbone.contract.size
    device = next(backbone.image_tower.parameters()).device
    with torch.inference_mode():
        levels: tuple[Tensor, ...] = backbone.image_tower(torch.zeros(1, 3, size, size, device=device)).levels
    return levels


class AdaptedTower(nn.Module):
    """Subclasses set `head` and define forward. `remove_lora(backbone.image_tower)` gives the backbone back."""

    head: nn.Module

    def __init__(self, backbone: TrainableBackbone, lora: LoraRecipe, head: nn.Module) -> None:
        super().__init__()
        self.tower = backbone.image_tower
        self.spec = LoraSpec(targets_from(backbone.lora_targets(), lora.first_block), lora.rank, lora.alpha, lora.use_rslora)
        self.first_block = block_index(self.spec.targets[0])
        self.head = head.to(next(self.tower.parameters()).device)
        self._lora = [p for layer in apply_lora(self.tower, self.spec).values() for p in (layer.lora_A, layer.lora_B)]

    def groups(self, pace: PaceRecipe) -> list[ParameterGroup]:
        learning = [parameter for parameter in self.head.parameters() if parameter.requires_grad]
        return [ParameterGroup("lora", self._lora, pace.lora_rate), ParameterGroup("head", learning, pace.head_rate)]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.tower.eval()
        return self

    def features(self, batch: Mapping[str, Any]) -> ImageFeatures:
        """batch holds `pixels` (B, 3, S, S), or `hidden` (B, T, D) before the first adapted block and its `grid`.

        From `hidden` only the last levels come: those from just below the first adapted block on.
        """
        if "hidden" in batch:
            rows, columns = batch["grid"]
            hidden = batch["hidden"].float()
            below = (self.tower.as_map(hidden, (rows, columns)),) * self.tower.taps.count(self.first_block - 1)
            state = TrunkState(hidden, (rows, columns), below)
            output: TowerOutput = self.tower.finish(self.tower.run(state, self.first_block))
        else:
            output = self.tower(batch["pixels"])
        embedding = F.normalize(output.embedding.float(), dim=-1)
        return ImageFeatures(embedding, output.tokens, output.levels, output.grid)

    def pooled_levels(self, batch: Mapping[str, Any], levels: Sequence[Tensor], pools: Sequence[str]) -> Tensor:
        """(B, F): the levels pooled: those below the first adapted block from the cache where it has them, others as given."""
        if "below" not in batch:
            return pool_levels(levels, pools)
        above = sum(tap >= self.first_block for tap in self.tower.taps)
        return torch.cat([batch["below"], pool_levels(levels[-above:], pools)], dim=1)

    def learnt(self) -> list[Tensor]:
        """LoRA's factors and every tensor of the head, themselves."""
        return [*self._lora, *self.head.state_dict().values()]

    def weights(self) -> LoraWeights:
        """The factors as they are now, on the CPU."""
        return read_weights(self.tower, self.spec)
