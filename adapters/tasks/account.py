"""What each modality adds to a prediction, from the logits of every subset of those present. Numpy-free arithmetic.

The Shapley value of a modality is the mean, over all orders in which the modalities could have become known, of how far
the logit moved when this one did (Shapley 1953). The values of all modalities sum to the full logit minus the prior's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial
from typing import TypeAlias

Subset: TypeAlias = tuple[str, ...]
"""Names of modalities, in the adapter's order; the empty one is the prior."""


def subsets_of(modalities: Sequence[str], *, with_empty: bool = False) -> tuple[Subset, ...]:
    """Every subset, small ones first, each in the given order."""
    sizes = range(0 if with_empty else 1, len(modalities) + 1)
    return tuple(subset for size in sizes for subset in combinations(modalities, size))


def shapley(modalities: Sequence[str], logits: Mapping[Subset, float]) -> dict[str, float]:
    """logits: of every subset of `modalities`, the empty one included."""
    count = len(modalities)
    shares = {}
    for name in modalities:
        others = [other for other in modalities if other != name]
        total = 0.0
        for subset in subsets_of(others, with_empty=True):
            weight = factorial(len(subset)) * factorial(count - len(subset) - 1) / factorial(count)
            with_name = tuple(other for other in modalities if other == name or other in subset)
            total += weight * (logits[with_name] - logits[subset])
        shares[name] = total
    return shares
