"""Validation of pretraining: how well the finding head tells what the manifest knows of films it did not learn from."""

from __future__ import annotations

import numpy as np
import torch

from foundation.prompts import NIH_FINDINGS
from training.manifests.datasets import FilmTable
from training.pretraining.feed import Feed
from training.pretraining.learner import Learner

BATCH = 128
LEAST_POSITIVE = 5  # films of a target below which its AUROC says nothing


@torch.no_grad()
def validate(learner: Learner, table: FilmTable, feed: Feed) -> dict[str, float]:
    """Mean AUROC per group of targets; no number where a group has one class only. The learner is in training mode after."""
    from training.measuring.metrics import auroc

    learner.eval()
    logits = []
    for start in range(0, len(table), BATCH):
        pooled = feed.feature_map(learner, feed.films(table.pixels[start : start + BATCH])).float().mean((2, 3))
        logits.append(learner.findings.head(pooled))
    scores = torch.cat(logits).cpu().numpy()
    learner.train()
    values: dict[str, list[float]] = {}
    for column, name in enumerate(table.target_names):
        known = ~np.isnan(table.targets[:, column])
        truth = table.targets[known, column] > 0.5
        if LEAST_POSITIVE <= truth.sum() < known.sum():
            values.setdefault(_group(name), []).append(float(auroc(scores[known, column], truth)[0]))
    return {group: float(np.mean(held)) for group, held in values.items()}


def _group(target: str) -> str:
    if target in NIH_FINDINGS:
        return "nih findings"
    return "phantom" if target.startswith("phantom") else target
