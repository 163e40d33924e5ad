"""Which labels a field of the rows tells by itself, such as the size in which a film was kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foundation.errors import InvalidRequest
from training.erasure import Floats
from training.level_fit import Blind, Truth
from training.manifests.manifest import Row
from training.measuring.metrics import auroc
from training.measuring.sections import group_of

FEWEST = 0.01  # of the films: strata with fewer are unknown
TELLS = 0.6  # the AUROC of a label by its share in each stratum, from which on the strata tell it


def blind_labels(rows: Sequence[Row], truth: Truth, exclusive: Sequence[Sequence[int]], field: str) -> Blind | None:
    """Columns of truth (views * N, K) of the training rows that `field` tells; classes of exclusive groups stay as they are."""
    if not field:
        return None
    strata = np.tile(strata_of([group_of(row, field) for row in rows]), (len(truth) // len(rows), 1))
    if not strata.shape[1]:
        raise InvalidRequest(
            f"The training rows do not differ in {field!r}: set data.blind_to to a field in which they do, or leave it out.",
            param="blind_to",
        )
    classes = {column for columns in exclusive for column in columns}
    return Blind([column for column in told_by(strata, truth) if column not in classes], strata)


def strata_of(values: Sequence[str]) -> Floats:
    """A word for each film, "" where unknown -> (N, G) in 0 and 1: G strata but the most common; NaN rows are unknown."""
    words, counts = np.unique(np.asarray([value for value in values if value]), return_counts=True)
    kept = [str(word) for word, count in zip(words, counts, strict=True) if count >= FEWEST * counts.sum()]
    kept.sort(key=lambda word: -counts[words == word][0])
    known = np.asarray([value in kept for value in values])[:, None]
    return np.where(known, np.asarray([[float(value == word) for word in kept[1:]] for value in values]), np.nan)


def told_by(strata: Floats, truth: Truth) -> list[int]:
    """Columns of truth (N, K), NaN unknown, that the strata alone tell: AUROC of each by its share there at least TELLS."""
    told = []
    for column in range(truth.shape[1]):
        known = ~np.isnan(strata).any(axis=1) & ~np.isnan(truth[:, column])
        own, place = truth[known, column], np.unique(strata[known], axis=0, return_inverse=True)[1].ravel()
        if not len(own) or own.min() == own.max():
            continue
        shares = np.bincount(place, own) / np.bincount(place)
        if auroc(shares[place], own > 0.5, np.ones((1, len(own))))[0] >= TELLS:
            told.append(column)
    return told
