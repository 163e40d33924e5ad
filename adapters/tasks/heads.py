"""What the heads of all tasks share: binding their tensors from disk, and bringing levels to one scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.card import AdapterCard
from foundation.errors import AdapterRefused

Head = TypeVar("Head", bound=nn.Module)


def head_options(card: AdapterCard, task: str, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The card's `head`, which must hold `names`, may hold `optional` and nothing else; refused where the task is another."""
    if card.task != task:
        raise AdapterRefused(f"The adapter {card.name!r} is for {card.task}, not for {task}.")
    options: dict[str, Any] = dict(card.head)
    odd = sorted((set(options) - set(optional)) ^ set(names))
    if odd:
        raise AdapterRefused(f"The card's head needs {', '.join(names)} and nothing else; odd are {', '.join(odd)}.")
    return options


def bind_head(head: Head, tensors: Mapping[str, Tensor]) -> Head:
    """Copy the tensors into `head` (in its own float type), frozen and in evaluation mode."""
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if odd:
        raise AdapterRefused(f"The head's tensors do not bind: {', '.join(odd)}.")
    head.load_state_dict(dict(tensors))
    return head.eval().requires_grad_(False)


def standardised(level: Tensor) -> Tensor:
    """(B, D, H, W) with each place's features at zero mean and unit variance: towers differ in scale by far."""
    return F.layer_norm(level.float().movedim(1, -1), level.shape[1:2]).movedim(-1, 1)
