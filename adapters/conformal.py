"""Conformal verdicts: what can be said of a label at a stated coverage, from the card's two thresholds. Numpy only.

    probability      0 ........... thresholds[k] ........... absent[k] ........... 1        (or the other way round)
    is in the set    absent        absent, present           present

Both thresholds were fitted class by class (Mondrian, Vovk 2005): of films that have the finding `coverage` keep "present" in
their set, of films that do not `coverage` keep "absent". A set of both, or of neither, says that the film does not decide.
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
    may_be_present = left(conformal, probabilities)
    if may_be_present is None:
        return None
    if conformal.absent:
        may_be_absent = probabilities <= np.array(conformal.absent)
    else:
        others = may_be_present.sum() - may_be_present
        may_be_absent = ~may_be_present | (others > 0)
    return tuple(_verdict(bool(p), bool(a)) for p, a in zip(may_be_present, may_be_absent, strict=True))


def left(conformal: Conformal, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_] | None:
    """(K,) which labels are not ruled out; None where the card has no thresholds.

    Of classes that exclude each other the most probable is always left: a film is of one of them.
    """
    if conformal.coverage is None or not conformal.thresholds:
        return None
    kept = np.asarray(probabilities >= np.array(conformal.thresholds))
    if not conformal.absent and len(kept) > 1 and not kept.any():
        kept[int(np.argmax(probabilities))] = True
    return kept


def _verdict(may_be_present: bool, may_be_absent: bool) -> ConformalSet:
    if may_be_present == may_be_absent:
        return "uncertain"
    return "present" if may_be_present else "absent"
