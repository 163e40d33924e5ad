"""SlotLayer: the linear maps of one Llama layer, over the tokens of many sequences at once.

    is_fused   q, k and v as one product, gate and up as another: for tokens without an adapter
    else       each map called as the module it is, so that the bank's hooks see it

Maps that read the same input come to share one storage, laid out input first (`_shared`); the modules' own weights
become views into it, so nothing is held twice and transformers' model over them stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

_PAD_BYTES = 64  # NOTE: rows whose length is a multiple of a page fall into the same places of the processor's cache


class SlotLayer:
    def __init__(self, layer: Any, epsilon: float) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norm, self._second_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self._epsilon = epsilon
        self._reads = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._opens = (mlp.gate_proj, mlp.up_proj)
        self._out, self._down, self._act = attention.o_proj, mlp.down_proj, mlp.act_fn
        self._read, self._open = _shared(self._reads), _shared(self._opens)
        self._speak, self._close = _shared((self._out,)), _shared((self._down,))

    def reads(self, x: Tensor, shape: Sequence[int], is_fused: bool) -> Tensor:
        """x (n, W) -> (n, widths of q, k and v, one behind the other)."""
        x = rms_norm(x, x.shape[-1:], self._norm, self._epsilon)
        if is_fused:
            return linear(x, *self._read)
        return torch.cat([_apply(one, x, shape) for one in self._reads], 1)

    def speaks(self, x: Tensor, said: Tensor, shape: Sequence[int], is_fused: bool) -> Tensor:
        """x with what attention `said` (n, heads * d), and what the MLP makes of both: (n, W)."""
        x = _added(x, said, *self._speak) if is_fused else x + _apply(self._out, said, shape)
        normed = rms_norm(x, x.shape[-1:], self._second_norm, self._epsilon)
        if is_fused:
            gate, up = linear(normed, *self._open).chunk(2, 1)
            return _added(x, self._act(gate).mul_(up), *self._close)
        gate, up = (_apply(one, normed, shape) for one in self._opens)
        return x.add_(_apply(self._down, self._act(gate) * up, shape))


def _shared(maps: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of all maps as one, (N, D) with N the faster axis; the maps' own become views into it.

    In this order a product of a few rows takes half the time on a CPU; with many rows it is never slower.
    """
    wide = sum(one.out_features for one in maps)
    like = maps[0].weight
    storage = like.new_zeros(maps[0].in_features, wide + _PAD_BYTES // like.element_size())
    weight = storage[:, :wide].T
    biases = [one.bias.data for one in maps if one.bias is not None]
    bias = torch.cat(biases) if biases else None
    begun = 0
    for one in maps:
        here = slice(begun, begun + one.out_features)
        weight[here] = one.weight.data
        one.weight.data = weight[here]
        if bias is not None:
            one.bias.data = bias[here]
        begun += one.out_features
    return weight, bias


def _added(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, N) and what the map makes of y (n, D), as one product."""
    total = torch.addmm(x, y, weight.T)
    return total if bias is None else total.add_(bias)


def _apply(one: nn.Module, x: Tensor, shape: Sequence[int]) -> Tensor:
    """A map called as a module, its hooks with it; x (n, D) as (rows, tokens of each, D)."""
    y: Tensor = one(x.unflatten(0, tuple(shape)))
    return y.flatten(0, 1)
