"""Losses of one step of pretraining: films are changed and shown as the stage says, and each of its objectives is told what
the learner makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.enlarge import enlarge
from training.augment import AugmentStrength, augment, mirror, mix, to_lower_resolution
from training.manifests.datasets import FilmTable
from training.pretraining import objectives
from training.pretraining.feed import Feed
from training.pretraining.learner import Learner, Prompts, TextSide
from training.pretraining.recipe import StageRecipe

FINE_PIXELS, COARSE_PIXELS = 160, 128  # a film kept at more than the first is at times shown as if kept at the second


@dataclass(frozen=True, eq=False)
class Language:
    """What a stage with text reads: the frozen text tower's table, and the prompts of the targets."""

    text: TextSide
    prompts: Prompts


@dataclass(frozen=True, eq=False)
class Losses:
    """language: None for stages without text."""

    feed: Feed
    strength: AugmentStrength
    language: Language | None

    def __call__(
        self, learner: Learner, table: FilmTable, chosen: np.ndarray[Any, Any], stage: StageRecipe, seed: int
    ) -> dict[str, Tensor]:
        """By objective. chosen (B,): rows of the table. Whatever is random is drawn from the seed."""
        generator = torch.Generator().manual_seed(seed)
        films, targets = self._shown(table, chosen, stage, generator)
        for name in ("masked", "gradients"):
            if name in stage.objectives:
                hider = getattr(learner, name)
                hidden, mask = hider.hide(films, generator)
                return {name: hider(self.feed.feature_map(learner, hidden), films, mask)}
        features = self.feed.feature_map(learner, films).float()
        pooled = features.mean((2, 3))
        parts: dict[str, Tensor] = {}
        if "findings" in stage.objectives:
            parts["findings"] = learner.findings(pooled, targets)
        if self.language is not None:
            parts |= self._told(self.language, learner, table, chosen, stage, features, pooled, targets, seed)
        return parts

    def _shown(
        self, table: FilmTable, chosen: np.ndarray[Any, Any], stage: StageRecipe, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Films (B, 1, S, S) in 0..1 and targets (B, K) as this stage shows them, on the device."""
        device, films = self.feed.device, self.feed.films(table.pixels[chosen])
        if stage.hide_resolution:
            fine = torch.from_numpy(table.native_pixels[chosen]) > FINE_PIXELS
            fine &= torch.rand(len(chosen), generator=generator) < stage.hide_resolution
            if fine.any():
                films[fine.to(device)] = to_lower_resolution(films[fine.to(device)], COARSE_PIXELS)
        films = augment(films, stage.size, self.strength, generator)
        targets = torch.from_numpy(table.targets[chosen]).to(device)
        if stage.flip:
            films, targets = mirror(films, targets, table.target_names, stage.flip, generator)
        if stage.mix:
            films, targets = mix(films, targets, [table.streams[i] for i in chosen], stage.mix, generator)
        if stage.sizes:
            films = enlarge(films, stage.sizes[int(torch.randint(len(stage.sizes), (1,), generator=generator))])
        return films, targets

    def _told(
        self, language: Language, learner: Learner, table: FilmTable, chosen: np.ndarray[Any, Any], stage: StageRecipe,
        features: Tensor, pooled: Tensor, targets: Tensor, seed: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Objectives of text. features (B, D, h, w), pooled (B, D), targets (B, K)."""
        text, prompts = language.text, language.prompts
        random, scale, images = np.random.default_rng(seed), learner.logit_scale.exp(), learner.project(pooled)
        reports = [str(random.choice(table.texts[i])) for i in chosen]
        report_e, positive_e, negative_e, phantom_e = _embedded(learner, text, [reports, *prompts.draw(random)])
        parts: dict[str, Tensor] = {}
        if "pairs" in stage.objectives:
            soft, weight = objectives.pair_targets(targets, reports)
            parts["pairs"] = objectives.sigmoid_pair_loss(images, report_e, soft, weight, scale, learner.logit_bias)
        if "prompts" in stage.objectives:
            wanted, weights = targets[:, prompts.columns], learner.findings.weights[prompts.columns]
            parts["prompts"] = objectives.prompt_pair_loss(images, positive_e, negative_e, wanted, weights, scale)
        if "captions" in stage.objectives and learner.captions is not None:
            with self.feed.autocast():
                parts["captions"] = learner.captions(features.flatten(2).transpose(1, 2), text.ids(reports))
        if "patches" in stage.objectives and table.masks is not None:
            patches = learner.project(features.flatten(2).transpose(1, 2))
            masks = torch.from_numpy(table.masks[chosen]).float().to(self.feed.device)
            masks = F.adaptive_avg_pool2d(masks, (features.shape[-2], features.shape[-1]))
            parts["patches"] = objectives.patch_text_loss(patches, phantom_e, masks, scale)
        return parts


def _embedded(learner: Learner, text: TextSide, groups: Sequence[Sequence[str]]) -> tuple[Tensor, ...]:
    """Of each group of sentences (n, E) unit length; all are read at once."""
    sentences = [sentence for group in groups for sentence in group]
    parts: tuple[Tensor, ...] = learner.project_text(text.pooled(sentences)).split([len(group) for group in groups])
    return parts
