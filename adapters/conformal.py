"""Conformal verdicts: what can be said of a label at a stated coverage, from the card's two thresholds. Numpy only.

    probability      0 ........... thresholds[k] ........... absent[k] ........... 1        (or the other way round)
    is in the set    absent        absent, present           present

Both thresholds were fitted class by class (Mondrian, Vovk 2005): of patients who have the finding, one film each, `coverage`
keep "present" in their set, of those who do not `coverage` keep "absent". A set of both, or of neither, says that the film does
not decide. The same film is always told the same.
Fitted by `training/trust/conformal.py`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from adapters.card import Conformal

ConformalSet = Literal["present", "absent", "uncertain"]


def conformal_sets(conformal: Conformal, probabilities: npt.NDArray[np.float64]) -> tuple[ConformalSet, ...] | None:
    """probabilities (K,) -> what is left for each label; None where the card has no thresholds.

    Of classes that exclude each other (no `absent` thresholds): "present" for the only one that is left, "absent" for
    those that are ruled out, "uncertain" for several that are left.
    """
    possible = may_be(conformal, probabilities)
    if possible is None:
        return None
    return tuple(_verdict(bool(p), bool(a)) for p, a in zip(*possible, strict=True))


def may_be(
    conformal: Conformal, probabilities: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
    """probabilities (..., K) -> which labels may be present, and which absent; None where the card has no thresholds."""
    present = left(conformal, probabilities)
    if present is None:
        return None
    if conformal.absent:
        return present, np.asarray(probabilities <= np.array(conformal.absent))
    others = present.sum(axis=-1, keepdims=True) - present
    return present, ~present | (others > 0)


def left(conformal: Conformal, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_] | None:
    """(..., K) which labels are not ruled out; None where the card has no thresholds.

    Of classes that exclude each other the most probable is always left: a film is of one of them.
    """
    if conformal.coverage is None or not conformal.thresholds:
        return None
    kept = np.asarray(probabilities >= np.array(conformal.thresholds))
    if not conformal.absent and kept.shape[-1] > 1:
        likeliest = np.arange(kept.shape[-1]) == probabilities.argmax(axis=-1)[..., None]
        kept = kept | (likeliest & ~kept.any(axis=-1, keepdims=True))
    return kept


def _verdict(may_be_present: bool, may_be_absent: bool) -> ConformalSet:
    if may_be_present == may_be_absent:
        return "uncertain"
    return "present" if may_be_present else "absent"
