"""What of a model is learnt: the tensors that a run keeps of it, and puts back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that learn and of all buffers."""
    kept = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad} | dict(model.named_buffers())
    return {name: tensor.cpu().clone().contiguous() for name, tensor in kept.items()}


@torch.no_grad()
def load_trainable(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that `trainable_tensors` gave, or some of them, into the model, in place."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
