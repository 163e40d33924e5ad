"""Linear erasure: what tells how a film was kept is taken out of features, so that a linear reading cannot lean on it.

    x' = x - (x @ told) @ carried.T      told (F, G): reads the strata from x; carried (F, G): how x goes with them

After that no linear function of x' goes with the strata in the films that it was fitted on (LEACE: Belrose 2023, here with a
ridge, as there are more features than films). A reading of x' is one of x too, with other weights: `folded`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RIDGE = 0.1  # of a standardised feature's variance


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


def fit_erasure(x: npt.NDArray[np.float32], start: Floats, strata: Floats) -> Erasure:
    """x (N, F): standardised features. start (N, K). strata (N, G): NaN rows are left out."""
    known = ~np.isnan(strata).any(axis=1)
    seen, kinds, said = x[known], strata[known], start[known]
    seen, kinds = seen - seen.mean(axis=0), kinds - kinds.mean(axis=0)
    count = len(seen)
    carried = np.asarray(seen.T @ kinds.astype(np.float32), np.float64) / count
    if seen.shape[1] <= count:
        reads = np.linalg.solve(_with_ridge(seen.T @ seen, count), carried)
    else:  # the same by the films' products, of which there are fewer
        reads = (
            np.asarray(seen.T @ np.linalg.solve(_with_ridge(seen @ seen.T, count), kinds).astype(np.float32), np.float64)
            / count
        )
    told = reads @ np.linalg.inv(carried.T @ reads).T
    return Erasure(told, carried, np.asarray((said - said.mean(axis=0)).T @ kinds / count))


def _with_ridge(products: npt.NDArray[np.float32], count: int) -> Floats:
    square = np.asarray(products, np.float64) / count
    square.flat[:: len(square) + 1] += RIDGE
    return square
