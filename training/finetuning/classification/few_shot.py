"""Learning from a few films a label: which films, and the blend of words and prototypes that needs no training.

    direction of a label = words  +  share * prototype,    share = shots / (shots + 8)

Both directions have the words' length; the prototype is the mean embedding of the films that carry the label less the mean of
those that do not. As few films say little, words keep the upper hand until there are eight. Linear in the embedding, so
an ordinary head holds it. After Tip-Adapter (Zhang 2022) and prototypical networks (Snell 2017); nothing is searched for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRIALS = 3
WORDS_WEIGH = 8.0  # shots at which a prototype counts half


def draw_shots(truth: npt.NDArray[np.float32], patients: Sequence[str], shots: int, seed: int) -> npt.NDArray[np.int64]:
    """Places of up to `shots` films of each label, of as many patients as can be, and of up to `shots` that carry none."""
    random = np.random.default_rng(seed)
    held = np.nan_to_num(truth) > 0.5
    wanted = [held[:, k] for k in range(held.shape[1])] + [~held.any(axis=1) & ~np.isnan(truth).all(axis=1)]
    chosen: list[int] = []
    for members in wanted:
        order = random.permutation(np.flatnonzero(members))
        seen: dict[str, int] = {}
        for place in order:
            seen.setdefault(patients[place], int(place))
        first = list(seen.values())
        chosen += (first + [int(place) for place in order if int(place) not in first])[:shots]
    return np.array(sorted(set(chosen)), dtype=np.int64)


@torch.no_grad()
def blend_prototypes(text: nn.Linear, embeddings: Tensor, truth: npt.NDArray[np.float32]) -> None:
    """Turn each row of `text` (K, E) by its label's prototype; half way between the two means nothing is added."""
    for k in range(text.out_features):
        known = torch.from_numpy(~np.isnan(truth[:, k]))
        is_held = torch.from_numpy(np.nan_to_num(truth[:, k]) > 0.5) & known
        if not is_held.any() or not (known & ~is_held).any():
            continue
        shots = int(is_held.sum())
        prototype = embeddings[is_held].mean(0) - embeddings[known & ~is_held].mean(0)
        added = shots / (shots + WORDS_WEIGH) * text.weight[k].norm() * F.normalize(prototype, dim=0)
        middle = (embeddings[is_held].mean(0) + embeddings[known & ~is_held].mean(0)) / 2
        text.weight[k] += added.to(text.weight)
        text.bias[k] -= (added @ middle).to(text.bias)
