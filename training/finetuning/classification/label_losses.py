"""Losses of classification for labels that are rare, unknown or exclusive. Truth (N, K) holds NaN where nothing is known.

multi-label columns   bce          weighted binary cross-entropy
                      asymmetric   easy negatives hardly count (Ridnik 2021)
                      focal        easy films hardly count (Lin 2017)
a group of classes    ce           cross-entropy
                      logit_adjusted   plus the log of each class's share, so that rare classes are not drowned (Menon 2021)
                      focal        easy films hardly count
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.finetuning.recipe import TrainingRecipe

FOCUS = 2.0  # the focal loss's gamma
MARGIN = 0.05  # probability below which the asymmetric loss lets a negative go


class LabelLoss:
    """exclusive: the columns of each group of classes; truth: of the training films, for weights and shares."""

    def __init__(self, recipe: TrainingRecipe, exclusive: Sequence[Sequence[int]], truth: Tensor) -> None:
        self.recipe, self.exclusive = recipe, [list(columns) for columns in exclusive]
        taken = {column for columns in self.exclusive for column in columns}
        self.free = [column for column in range(truth.shape[1]) if column not in taken]
        self.weights = positive_weights(truth, recipe.max_positive_weight)
        self.shares = torch.nanmean(truth, dim=0).clamp_min(1e-4)

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Mean over what is known; each group of classes counts as one label."""
        total, count = logits.new_zeros(()), 0
        if self.free:
            values = self._binary(logits[:, self.free], truth[:, self.free], self.weights[self.free].to(logits.device))
            total, count = total + len(self.free) * values, count + len(self.free)
        for columns in self.exclusive:
            total, count = total + self._classes(logits[:, columns], truth[:, columns], columns), count + 1
        return total / count

    def _binary(self, logits: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        known = ~truth.isnan()
        target = torch.nan_to_num(truth) * (1 - 2 * self.recipe.label_smoothing) + self.recipe.label_smoothing
        values = binary_loss(self.recipe.loss, logits, target, weights)
        return (values * known).sum() / known.sum().clamp_min(1)

    def _classes(self, logits: Tensor, truth: Tensor, columns: Sequence[int]) -> Tensor:
        known = ~truth.isnan().any(dim=1)
        if not known.any():
            return logits.sum() * 0.0
        logits, target = logits[known], truth[known]
        if self.recipe.class_loss == "logit_adjusted":
            logits = logits + self.shares[columns].to(logits.device).log()
        smoothing = self.recipe.label_smoothing
        target = target * (1 - smoothing) + smoothing / target.shape[1]
        log_p = F.log_softmax(logits, dim=1)
        if self.recipe.class_loss == "focal":
            log_p = log_p * (1 - log_p.exp()) ** FOCUS
        return -(target * log_p).sum(dim=1).mean()


def binary_loss(name: str, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """(N, K) loss of each film and label; weights (K,) multiply the positives."""
    if name == "bce":
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
    p = torch.sigmoid(logits)
    if name == "focal":
        easy = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
        return easy * (target * (1 - p) + (1 - target) * p) ** FOCUS
    shifted = (p - MARGIN).clamp(min=0.0, max=1 - 1e-6)
    positive = weights * target * F.logsigmoid(logits) * (1 - p)
    negative = (1 - target) * torch.log1p(-shifted) * shifted**2
    return -(positive + negative)


def positive_weights(truth: Tensor, limit: float) -> Tensor:
    """(N, K) -> (K,): the square root of negatives over positives, from 1 to `limit`."""
    positives = torch.nansum(truth, dim=0).clamp(min=1.0)
    known = (~truth.isnan()).sum(dim=0)
    return ((known - positives) / positives).clamp_min(0.0).sqrt().clamp(1.0, limit)
