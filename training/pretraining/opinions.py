"""A second opinion on the labels of the training films, by the towers themselves (self-distillation).

    towers as they stand  -->  levels of each film, in several looks  -->  logistic regression, fold by fold  -->  (N, K)

Labels mined from reports are wrong for about one film in ten, and say yes or no where a film is in doubt. A stage that sets
`second_opinion` takes that share of a film's finding targets from here (born-again networks, Furlanello 2018; label
refinery, Bagherinezhad 2018). The regression that judges a film was fitted on films of other patients; the towers have seen
the film, though not in these looks, and its opinion is held down by a strong penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import GroupKFold
from torch import nn

from adapters.tasks.levels import pool_levels
from foundation.look import AS_IT_IS, further_looks
from foundation.prompts import NIH_FINDINGS
from foundation.towers.rewriting import image_tower
from foundation.towers.tower import ImageTower
from training.level_fit import Seen, fit_levels
from training.manifests.datasets import FilmTable
from training.pretraining.feed import Feed

SIZES = (160, 192)
FOLDS = 4
PENALTY = 0.8
BATCH = 64

Floats = npt.NDArray[np.float32]


def findings_opinions(table: FilmTable, patients: Sequence[str], visual: nn.Module, feed: Feed) -> Floats:
    """What open_clip's `visual` makes of the findings of a table's films, (N, K) as its targets; NaN where those are unknown.

    patients: of the table's first films, which are real ones; phantoms have no such findings.
    """
    columns = np.array([table.target_names.index(name) for name in NIH_FINDINGS])
    known = np.flatnonzero(~np.isnan(table.targets[: len(patients), columns]).any(axis=1))
    tower = image_tower(deepcopy(visual).eval())
    own = [patients[int(place)] for place in known]
    told = np.full(table.targets.shape, np.nan, np.float32)
    told[np.ix_(known, columns)] = second_opinions(tower, table.pixels[known], table.targets[np.ix_(known, columns)], own, feed)
    return told


def softened(table: FilmTable, opinions: Floats, share: float) -> FilmTable:
    """The table with that share of each target from `opinions` (N, K), where there is one."""
    mixed = (1 - share) * table.targets + share * opinions
    return replace(table, targets=np.where(np.isnan(opinions), table.targets, mixed).astype(np.float32))


def second_opinions(
    tower: ImageTower,
    films: npt.NDArray[np.uint8],
    truth: Floats,
    patients: Sequence[str],
    feed: Feed,
    *,
    folds: int = FOLDS,
) -> Floats:
    """Probabilities (N, K) for films (N, S, S) with known targets (N, K) in 0..1; patients: (N,), whom each film is of."""
    read = looked_at(tower, films, feed)
    told = np.empty(truth.shape, np.float32)
    start = np.zeros(truth.shape)
    for others, own in GroupKFold(folds).split(read, groups=list(patients)):
        train = Seen(read[others], start[others], truth[others])
        held = Seen(read[own], start[own], truth[own])
        fit = fit_levels(train, held, np.ones(len(others)), (PENALTY,), (), lambda logits, known: 0.0)
        told[own] = 1 / (1 + np.exp(-fit.logits(held)))
    return told


@torch.inference_mode()
def looked_at(tower: ImageTower, films: npt.NDArray[np.uint8], feed: Feed) -> Floats:
    """(N, F): the pooled levels of each film, at its own and further sizes, each the mean of the film and its mirror image."""
    sizes = SIZES if tower.side_step else ()
    looks = (AS_IT_IS, *further_looks(sizes, True))
    rows = []
    for start in range(0, len(films), BATCH):
        pixels = feed.normalised(feed.films(films[start : start + BATCH]))
        with feed.autocast():
            seen = [pool_levels(tower(look.of(pixels)).levels, ("mean",)) for look in looks]
        upright, mirrored = torch.cat(seen, dim=1).chunk(2, dim=1)
        rows.append(((upright + mirrored) / 2).cpu().numpy())
    return np.concatenate(rows)
