"""SlotCache: one static key-value cache for all sequences under way, a row each; and what runs a Llama over it.

    keys, values of a layer   (R, H, T, d)     R rows, H key-value heads, T places, d per head

    run(spans, embedded)      every span is a few new tokens of one row, at their own places; all maps of a layer run
                              over all tokens at once, attention runs row by row (rows that add one token: together)

transformers' own Llama can not write rows at different places into one cache. Here is the same arithmetic over the
same weights: in float32 the greedy tokens are the same. Rows know nothing of chats; `generation.py` gives them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

Adapting = Callable[[Sequence[int]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Span:
    """`length` new tokens of the sequence in `row`, the first at place `start`, through the adapter in slot `adapter`."""

    row: int
    start: int
    length: int = 1
    adapter: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length


class SlotCache:
    """Keys and values of `rows` sequences of at most `places` tokens."""

    def __init__(self, config: Any, rows: int, places: int, device: torch.device, dtype: torch.dtype) -> None:
        heads, width = int(config.num_key_value_heads), int(config.head_dim)
        shape = (rows, heads, places, width)
        self.keys = [_zeros(shape, device, dtype) for _ in range(config.num_hidden_layers)]
        self.values = [_zeros(shape, device, dtype) for _ in range(config.num_hidden_layers)]
        self.rows = rows

    def read(self, row: int, length: int) -> Tensor:
        """A copy of a row's first `length` places: (layers, 2, H, length, d)."""
        pairs = [torch.stack((k[row, :, :length], v[row, :, :length])) for k, v in zip(self.keys, self.values, strict=True)]
        return torch.stack(pairs)

    def write(self, row: int, held: Tensor) -> None:
        """What `read` gave, into the first places of a row."""
        length = held.shape[3]
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            keys[row, :, :length] = held[layer, 0]
            values[row, :, :length] = held[layer, 1]

    def move(self, source: int, target: int, length: int) -> None:
        if source != target:
            for held in (*self.keys, *self.values):
                held[target, :, :length] = held[source, :, :length]

    def wipe(self, row: int) -> None:
        """NOTE: what is masked is multiplied by zero, and zero times NaN is NaN: a broken row must not be left behind."""
        for held in (*self.keys, *self.values):
            held[row].zero_()


class SlotDecoder:
    """A LlamaForCausalLM over a SlotCache. adapting: the bank's `rows`, where the decoder has adapters.

    The q, k and v maps of a layer come to share one storage, and gate and up another: without adapters each group runs
    as one product, with adapters each map runs by itself, so that the bank's hooks see it.
    """

    def __init__(self, model: Any, rows: int, adapting: Adapting | None = None) -> None:
        config = model.config
        weight = model.get_input_embeddings().weight
        self.cache = SlotCache(config, rows, int(config.max_position_embeddings), weight.device, weight.dtype)
        self._model = model
        self._adapting = adapting
        self._epsilon = float(config.rms_norm_eps)
        self._heads, self._groups = int(config.num_key_value_heads), config.num_attention_heads // config.num_key_value_heads
        self._width = int(config.head_dim)
        self._layers = [_Layer(layer) for layer in model.model.layers]
        places = torch.arange(int(config.max_position_embeddings), device=weight.device)[None]
        cosine, sine = model.model.rotary_emb(weight, places)
        self._cosine, self._sine = cosine[0, :, None], sine[0, :, None]  # (T, 1, d)

    @property
    def context(self) -> int:
        return len(self._cosine)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """(n, W)."""
        row = torch.tensor(list(ids), dtype=torch.long, device=self._cosine.device)
        embedded: Tensor = self._model.get_input_embeddings()(row)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (n, W) as `run` gives it -> (n, V) in float32."""
        scores: Tensor = self._model.lm_head(hidden)
        return scores.float()

    def run(self, spans: Sequence[Span], embedded: Tensor) -> Tensor:
        """embedded (n, W): the spans' tokens one behind the other -> (n, W), after the last norm. Fills the cache.

        With adapters in it, the spans of one token must come first; they run as one batch, every other by itself.
        """
        if not any(span.adapter for span in spans):
            return self._run(spans, embedded, embedded.shape[:0], is_fused=True)
        assert self._adapting is not None
        single = sum(span.length == 1 for span in spans)
        groups = [list(spans[:single])] * bool(single) + [[span] for span in spans[single:]]
        done, begun = [], 0
        for group in groups:
            count = sum(span.length for span in group)
            shape = (len(group), count // len(group))
            with self._adapting([span.adapter for span in group]):
                done.append(self._run(group, embedded[begun : begun + count], shape, is_fused=False))
            begun += count
        return torch.cat(done)

    def _run(self, spans: Sequence[Span], x: Tensor, shape: Sequence[int], *, is_fused: bool) -> Tensor:
        """shape: how an adapter's maps are to see the tokens, (rows, tokens of each)."""
        plan = _Plan.of(spans, self._groups, x)
        cosine, sine = self._cosine[plan.places], self._sine[plan.places]
        for index, layer in enumerate(self._layers):
            q, k, v = layer.attends(rms_norm(x, x.shape[-1:], layer.norm, self._epsilon), shape, is_fused)
            q, k = (_rotated(one.unflatten(1, (-1, self._width)), cosine, sine) for one in (q, k))
            keys, values = self.cache.keys[index], self.cache.values[index]
            plan.write(keys, k)
            plan.write(values, v.unflatten(1, (-1, self._width)))
            x = x + layer.speaks(self._attention(plan, q, keys, values), shape, is_fused)
            x = x + layer.thinks(rms_norm(x, x.shape[-1:], layer.second_norm, self._epsilon), shape, is_fused)
        last: Tensor = rms_norm(x, x.shape[-1:], self._model.model.norm.weight, self._epsilon)
        return last

    def _attention(self, plan: _Plan, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q (n, heads, d) -> (n, heads * d). The queries that share a key-value head stand as rows of one product."""
        q = q.unflatten(1, (self._heads, self._groups))  # (n, H, g, d)
        said: list[Tensor] = []
        if plan.single:
            rows: Any = slice(0, plan.single) if plan.is_leading else plan.rows
            k, v = keys[rows, :, : plan.longest], values[rows, :, : plan.longest]
            said.append(scaled_dot_product_attention(q[: plan.single], k, v, attn_mask=plan.mask).flatten(1))
        begun = plan.single
        for span, mask in plan.others:
            mine = q[begun : begun + span.length].permute(1, 2, 0, 3).flatten(1, 2)[None]  # (1, H, g * n, d)
            k, v = keys[span.row, None, :, : span.end], values[span.row, None, :, : span.end]
            seen = scaled_dot_product_attention(mine, k, v, attn_mask=mask)[0].unflatten(1, (self._groups, span.length))
            said.append(seen.permute(2, 0, 1, 3).flatten(1))
            begun += span.length
        return said[0] if len(said) == 1 else torch.cat(said)


@dataclass(frozen=True, eq=False)
class _Plan:
    """Where the tokens of one run go, and what each may see.

    single: how many spans, all at the beginning, add one token. is_leading: those are rows 0, 1, 2, ... of the cache,
    which need not be gathered. mask (single, 1, g, longest) and (g * n, end): zero, or minus infinity.
    """

    rows: Tensor  # of the spans of one token
    places: Tensor  # of all tokens
    single: int
    is_leading: bool
    longest: int
    mask: Tensor | None
    others: tuple[tuple[Span, Tensor], ...]

    @classmethod
    def of(cls, spans: Sequence[Span], groups: int, like: Tensor) -> _Plan:
        single = next((index for index, span in enumerate(spans) if span.length > 1), len(spans))
        alone, others = spans[:single], spans[single:]
        rows = [span.row for span in alone]
        places = torch.tensor([place for span in spans for place in range(span.start, span.end)], device=like.device)
        longest, mask = max((span.end for span in alone), default=0), None
        if alone:
            hidden = torch.arange(longest, device=like.device)[None] > places[:single, None]
            mask = torch.zeros(hidden.shape, device=like.device, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
            mask = mask[:, None, None].expand(-1, 1, groups, -1)
        is_leading = rows == list(range(single))
        masks = tuple((span, _causal(span, groups, like)) for span in others)
        return cls(torch.tensor(rows, dtype=torch.long, device=like.device), places, single, is_leading, longest, mask, masks)

    def write(self, held: Tensor, new: Tensor) -> None:
        """new (n, H, d) into a layer's keys or values (R, H, T, d)."""
        begun = self.single
        if begun:
            held[self.rows, :, self.places[:begun]] = new[:begun]
        for span, _ in self.others:
            held[span.row, :, span.start : span.end] = new[begun : begun + span.length].transpose(0, 1)
            begun += span.length


class _Layer:
    """One decoder layer's maps: by themselves, and with those that read the same input as one product."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm, self.second_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self._reads = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._opens = (mlp.gate_proj, mlp.up_proj)
        self._out, self._down, self._act = attention.o_proj, mlp.down_proj, mlp.act_fn
        self._read, self._open = _shared(self._reads), _shared(self._opens)
        self._widths = [one.out_features for one in self._reads]

    def attends(self, x: Tensor, shape: Sequence[int], is_fused: bool) -> Sequence[Tensor]:
        if is_fused:
            parts: Sequence[Tensor] = linear(x, *self._read).split(self._widths, 1)
            return parts
        return [_apply(one, x, shape) for one in self._reads]

    def speaks(self, x: Tensor, shape: Sequence[int], is_fused: bool) -> Tensor:
        return linear(x, self._out.weight, self._out.bias) if is_fused else _apply(self._out, x, shape)

    def thinks(self, x: Tensor, shape: Sequence[int], is_fused: bool) -> Tensor:
        if is_fused:
            gate, up = linear(x, *self._open).chunk(2, 1)
            return linear(self._act(gate) * up, self._down.weight, self._down.bias)
        gate, up = (_apply(one, x, shape) for one in self._opens)
        return _apply(self._down, self._act(gate) * up, shape)


def _shared(maps: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of all maps as one; the maps' own become views into it, so that nothing is held twice."""
    weight = torch.cat([one.weight.data for one in maps])
    biases = [one.bias.data for one in maps if one.bias is not None]
    bias = torch.cat(biases) if biases else None
    begun = 0
    for one in maps:
        one.weight.data = weight[begun : begun + one.out_features]
        if bias is not None:
            one.bias.data = bias[begun : begun + one.out_features]
        begun += one.out_features
    return weight, bias


def _apply(one: nn.Module, x: Tensor, shape: Sequence[int]) -> Tensor:
    """A map called as a module, its hooks with it; x (n, D) as (rows, tokens of each, D)."""
    y: Tensor = one(x.unflatten(0, tuple(shape)))
    return y.flatten(0, 1)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding, as Llama turns it: x (n, heads, d), cosine and sine (n, 1, d)."""
    half = x.shape[-1] // 2
    return x * cosine + torch.cat((-x[..., half:], x[..., :half]), -1) * sine


def _causal(span: Span, groups: int, like: Tensor) -> Tensor:
    mask = torch.full((span.length, span.end), float("-inf"), device=like.device, dtype=like.dtype)
    return mask.triu_(span.start + 1).repeat(groups, 1)


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros; on the CPU such as take no memory before they are written to."""
    if device.type == "cpu" and dtype == torch.float32:
        return torch.from_numpy(np.zeros(shape, np.float32))
    return torch.zeros(shape, device=device, dtype=dtype)
