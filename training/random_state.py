"""The global random generators of a process as tensors, so that a resumed run draws what an uninterrupted one would."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_tensors() -> dict[str, Tensor]:
    """The states of torch's and numpy's global generators (MT19937: 624 words, a position and a kept normal)."""
    _, words, position, has_normal, normal = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        **{f"cuda{number}": held for number, held in enumerate(cuda)},
        "numpy_words": torch.from_numpy(np.asarray(words, np.int64)),
        "numpy_place": torch.tensor([position, has_normal, normal], dtype=torch.float64),
    }


def restore_random(tensors: Mapping[str, Tensor], python: Sequence[Any]) -> None:
    """Put back what `random_tensors` gave, and `python`: the state of the generator in `random`, read back from JSON."""
    torch.set_rng_state(tensors["torch"])
    cuda = [tensors[f"cuda{number}"] for number in range(sum(name.startswith("cuda") for name in tensors))]
    if torch.cuda.is_available() and cuda:
        torch.cuda.set_rng_state_all(cuda)
    position, has_normal, normal = tensors["numpy_place"].tolist()
    words = tensors["numpy_words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(position), int(has_normal), normal))
    version, numbers, gauss = python
    random.setstate((version, tuple(numbers), gauss))
