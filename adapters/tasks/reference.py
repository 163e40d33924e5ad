"""How surprising a film is among held-out normal films: branch scores to one p-value. Numpy only.

    score_b       of each branch, larger is stranger
    p_b           share of films, this one counted, that score at least as high       rank normalisation
    surprise      -sum_b weight_b log p_b                                             Fisher's combination
    p             share of films, this one counted, that are at least as surprising

The ranks are taken anew for every film, among the held-out films and itself (full conformal prediction, Vovk 2005): if
the film is as normal as they are, all n + 1 are exchangeable and p is uniform, whatever the branches do and however they
depend on one another. The smallest p is 1 / (n + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NormalReference:
    """scores (n, branches) of held-out normal films, weights (branches,) of at least one above zero."""

    scores: Floats
    weights: Floats

    def branch_p(self, scores: Floats) -> Floats:
        """(B, branches) -> (B, branches): each branch's own p-value."""
        at_least = (self.scores[None] >= scores[:, None]).sum(axis=1)
        return np.asarray((1 + at_least) / (len(self.scores) + 1))

    def p_values(self, scores: Floats) -> Floats:
        """(B, branches) -> (B,)."""
        count = len(self.scores) + 1
        among = (self.scores[None] >= self.scores[:, None]).sum(axis=1)  # (n, branches): held-out films as strange as each
        own = self._surprise(self.branch_p(scores))
        values = np.empty(len(scores))
        for row, score in enumerate(scores):
            others = self._surprise((among + (score >= self.scores)) / count)
            values[row] = (1 + (others >= own[row] - 1e-12).sum()) / count
        return values

    def surprise(self, scores: Floats) -> Floats:
        """(B,) the combined statistic, by which films can be ranked more finely than by p."""
        return self._surprise(self.branch_p(scores))

    def _surprise(self, p: Floats) -> Floats:
        return np.asarray(-(np.log(p) * self.weights).sum(axis=-1))
