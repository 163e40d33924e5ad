"""What a report on masks has open: the adapter, its rows, and how one film is looked at and answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.tasks.segmentation import SegmentationResult, Segmenter
from adapters.tasks.volume import VolumeSegmentation, segment_volume
from foundation.image import MedicalImage
from foundation.preprocess import normalise, render
from training.finetuning.segmentation.masks import Mask, MaskRecipe, has_masks, read_masked, with_unions
from training.finetuning.segmentation.recipe import SegmentationRecipe
from training.manifests.manifest import Row
from training.measuring.asked import Asked
from training.recipe import fill


@dataclass(frozen=True, eq=False)
class Segmentation(Asked):
    """What one report on masks has open. unet_cache: where the U-Net's masks are kept; None: no U-Net."""

    min_count: int = 10
    unet_cache: Path | None = None
    log: Callable[[str], None] = print

    @cached_property
    def recipe(self) -> SegmentationRecipe:
        return fill(SegmentationRecipe, self.adapter.card.recipe, "the card's recipe")

    @property
    def masks(self) -> tuple[MaskRecipe, ...]:
        return self.recipe.data.masks

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes, then unions."""
        return (*self.adapter.card.labels, *self.recipe.data.unions)

    @cached_property
    def segmenter(self) -> Segmenter:
        opened = Segmenter.open(self.adapter.card, self.adapter.head)
        opened.head.to(self.running.device)
        return opened

    def rows(self, split: str) -> tuple[Row, ...]:
        """The rows of a split that have masks; none where the manifest has no such split."""
        return tuple(row for row in self.manifest if row.split == split and has_masks(row, self.masks))

    def read(self, row: Row) -> tuple[MedicalImage, dict[str, Mask]]:
        """The film and its known masks, unions among them."""
        film, truth = read_masked(row, self.masks)
        return film, with_unions(truth, self.recipe.data.unions)

    @torch.inference_mode()
    def look(self, film: MedicalImage) -> tuple[Any, Tensor]:
        """Features and pixels (1, 3, S, S) of a film."""
        contract = self.backbone.contract
        pixels = torch.from_numpy(normalise(render(film, contract), contract))[None].to(self.running.device)
        with self.running.autocast():
            return self.backbone.encode_image(pixels), pixels

    def draw(self, film: MedicalImage) -> SegmentationResult | VolumeSegmentation:
        """The adapter's answer, without marks."""
        contract = self.backbone.contract
        if film.is_volume:
            return segment_volume(self.segmenter, self.backbone.encode_image, film, contract)
        [result] = self.segmenter(*self.look(film), [size_of(film)], contract)
        return result


def size_of(film: MedicalImage) -> tuple[int, int]:
    return film.pixels.shape[1], film.pixels.shape[2]
