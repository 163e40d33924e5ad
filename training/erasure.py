"""Linear erasure: what tells how a film was kept is taken out of features, so that a linear reading cannot lean on it.

    x' = x - (x @ told) @ carried.T      told (F, G): reads the strata from x; carried (F, G): how x goes with them

After that no linear function of x' goes with the strata in the films that it was fitted on (LEACE: Belrose 2023, here with a
ridge, as there are more features than films). A reading of x' is one of x too, with other weights: `folded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.measuring.metrics import auroc

Floats = npt.NDArray[np.float64]
RIDGE = 0.1  # of a standardised feature's variance
FEWEST = 0.01  # of the films: strata with fewer are unknown
TELLS = 0.6  # the AUROC of a label by its share in each stratum, from which on the strata tell it


@dataclass(frozen=True, eq=False)
class Erasure:
    """told, carried: (F, G), see above. start (K, G): how what the head says before the fit goes with the strata."""

    told: Floats
    carried: Floats
    start: Floats

    def of(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(N, F) -> (N, F) without the strata."""
        return np.asarray(x - (x @ self.told) @ self.carried.T, np.float32)

    def of_start(self, start: Floats, x: npt.NDArray[np.float32]) -> Floats:
        """(N, K) -> (N, K) without the strata; x: the features (N, F), which tell them."""
        return np.asarray(start - (x @ self.told) @ self.start.T)

    def folded(self, weight: Floats, slope: Floats) -> Floats:
        """Weights (K, F) on erased features and slopes (K,) on an erased start -> weights on features as they are."""
        return np.asarray(weight - (weight @ self.carried + slope[:, None] * self.start) @ self.told.T)


def strata_of(values: Sequence[str]) -> Floats:
    """A word for each film, "" where unknown -> (N, G) in 0 and 1: G strata but the most common; NaN rows are unknown."""
    words, counts = np.unique(np.asarray([value for value in values if value]), return_counts=True)
    kept = [str(word) for word, count in zip(words, counts, strict=True) if count >= FEWEST * counts.sum()]
    kept.sort(key=lambda word: -counts[words == word][0])
    known = np.asarray([value in kept for value in values])[:, None]
    return np.where(known, np.asarray([[float(value == word) for word in kept[1:]] for value in values]), np.nan)


def told_by(strata: Floats, truth: npt.NDArray[np.float32]) -> list[int]:
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


def fit_erasure(x: npt.NDArray[np.float32], start: Floats, strata: Floats) -> Erasure:
    """x (N, F): standardised features. start (N, K). strata (N, G): NaN rows are left out."""
    known = ~np.isnan(strata).any(axis=1)
    seen, kinds, said = x[known], strata[known], start[known]
    seen, kinds = seen - seen.mean(axis=0), kinds - kinds.mean(axis=0)
    count = len(seen)
    carried = np.asarray(seen.T @ kinds.astype(np.float32), np.float64) / count
    if seen.shape[1] <= count:
        square = np.asarray(seen.T @ seen, np.float64) / count
        square.flat[:: len(square) + 1] += RIDGE
        reads = np.linalg.solve(square, carried)
    else:  # the same by the films' products, of which there are fewer
        square = np.asarray(seen @ seen.T, np.float64) / count
        square.flat[:: len(square) + 1] += RIDGE
        reads = np.asarray(seen.T @ np.linalg.solve(square, kinds).astype(np.float32), np.float64) / count
    told = reads @ np.linalg.inv(carried.T @ reads).T
    return Erasure(told, carried, np.asarray((said - said.mean(axis=0)).T @ kinds / count))
