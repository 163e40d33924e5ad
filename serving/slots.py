"""SlotDecoder: runs a Llama over the rows of one static key-value cache (`slot_cache.py`).

    run(spans, embedded)      every span is a few new tokens of one row, at their own places; all maps of a layer run
                              over all tokens at once (`slot_layer.py`), attention runs row by row (rows that add one
                              token: together); in the last layer only tokens whose outcome is wanted go on

transformers' own Llama can not write rows at different places into one cache. Here is the same arithmetic over the
same weights: in float32 the greedy tokens are the same. Rows know nothing of chats; `generation.py` gives them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from serving.slot_cache import SlotCache
from serving.slot_layer import SlotLayer

Adapting = Callable[[Sequence[int]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Span:
    """`length` new tokens of the sequence in `row`, the first at place `start`, through the adapter in slot `adapter`.

    wants: of how many of them, the last ones, the outcome is asked for; of a single token it always is.
    """

    row: int
    start: int
    length: int = 1
    adapter: int = 0
    wants: int = 1

    def __post_init__(self) -> None:
        assert self.length > 1 or self.wants == 1

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def tail(self) -> Span:
        """The tokens whose outcome is wanted."""
        return replace(self, start=self.end - self.wants, length=self.wants)


class SlotDecoder:
    """A LlamaForCausalLM over a SlotCache. adapting: the bank's `rows`, where the decoder has adapters."""

    def __init__(self, model: Any, rows: int, adapting: Adapting | None = None) -> None:
        config = model.config
        weight = model.get_input_embeddings().weight
        self.cache = SlotCache(config, rows, int(config.max_position_embeddings), weight.device, weight.dtype)
        self._model = model
        self._adapting = adapting
        self._epsilon = float(config.rms_norm_eps)
        self._heads, self._groups = int(config.num_key_value_heads), config.num_attention_heads // config.num_key_value_heads
        self._width = int(config.head_dim)
        self._layers = [SlotLayer(layer, self._epsilon) for layer in model.model.layers]
        places = torch.arange(int(config.max_position_embeddings), device=weight.device)[None]
        cosine, sine = model.model.rotary_emb(weight, places)
        half = self._width // 2
        sine = torch.cat((-sine[..., :half], sine[..., half:]), -1)  # as `_rotate` takes it
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
        """embedded (n, W): the spans' tokens one behind the other -> (wanted ones, W), after the last norm. Fills the cache.

        The spans of one token must come first. With adapters in it, those run as one batch, every other by itself.
        """
        if not any(span.adapter for span in spans):
            return self._run(spans, embedded, is_fused=True)
        assert self._adapting is not None
        single = sum(span.length == 1 for span in spans)
        groups = [list(spans[:single])] * bool(single) + [[span] for span in spans[single:]]
        done, begun = [], 0
        for group in groups:
            count = sum(span.length for span in group)
            with self._adapting([span.adapter for span in group]):
                done.append(self._run(group, embedded[begun : begun + count], is_fused=False))
            begun += count
        return torch.cat(done)

    def _run(self, spans: Sequence[Span], x: Tensor, *, is_fused: bool) -> Tensor:
        """Not fused, spans are of one length, and an adapter's maps see their tokens as (rows, tokens of each)."""
        plan = _Plan.of(spans, self._groups, x)
        cosine, sine = self._cosine[plan.places], self._sine[plan.places]
        queries = self._heads * self._groups
        shape = (len(spans), len(x) // len(spans))
        for index, layer in enumerate(self._layers):
            qkv = layer.reads(x, shape, is_fused).view(len(x), -1, self._width)
            _rotate(qkv[:, : queries + self._heads], cosine, sine)
            q, held = qkv[:, :queries], self.cache.layers[index]
            plan.write(held, qkv[:, queries:].unflatten(1, (2, self._heads)))
            if index == len(self._layers) - 1 and plan.told is not None:
                x, q, plan = x[plan.told], q[plan.told], plan.tails
                shape = (len(spans), len(x) // len(spans))
            if len(x):
                x = layer.speaks(x, self._attention(plan, q, held), shape, is_fused)
        last: Tensor = rms_norm(x, x.shape[-1:], self._model.model.norm.weight, self._epsilon)
        return last

    def _attention(self, plan: _Plan, q: Tensor, held: Tensor) -> Tensor:
        """q (n, heads, d) -> (n, heads * d). The queries that share a key-value head stand as rows of one product."""
        keys, values = held.unbind()
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
    told: which tokens' outcome is wanted, None for all; tails: the plan of those.
    """

    rows: Tensor  # of the spans of one token
    places: Tensor  # of all tokens
    single: int
    is_leading: bool
    longest: int
    mask: Tensor | None
    others: tuple[tuple[Span, Tensor], ...]
    told: Tensor | None
    wanted: tuple[Span, ...]
    groups: int

    @classmethod
    def of(cls, spans: Sequence[Span], groups: int, like: Tensor) -> _Plan:
        single = next((index for index, span in enumerate(spans) if span.length > 1), len(spans))
        alone, others = spans[:single], spans[single:]
        rows = [span.row for span in alone]
        places = torch.tensor([*chain.from_iterable(range(span.start, span.end) for span in spans)], device=like.device)
        longest, mask = max((span.end for span in alone), default=0), None
        if alone:
            hidden = torch.arange(longest, device=like.device)[None] > places[:single, None]
            mask = torch.zeros(hidden.shape, device=like.device, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
            mask = mask[:, None, None].expand(-1, 1, groups, -1)
        is_leading = rows == list(range(single))
        masks = tuple((span, _causal(span, groups, like)) for span in others)
        told, wanted = _told(spans, like), tuple(span.tail for span in others if span.wants)
        where = torch.tensor(rows, dtype=torch.long, device=like.device)
        return cls(where, places, single, is_leading, longest, mask, masks, told, wanted, groups)

    @property
    def tails(self) -> _Plan:
        """What is left of the plan for attention, once all is written and only wanted tokens go on."""
        assert self.told is not None
        masks = tuple((span, _causal(span, self.groups, self.others[0][1])) for span in self.wanted)
        return replace(self, others=masks, told=None)

    def write(self, held: Tensor, new: Tensor) -> None:
        """new (n, 2, H, d) into a layer's keys and values (2, R, H, T, d)."""
        begun = self.single
        if begun:
            held[:, self.rows, :, self.places[:begun]] = new[:begun]
        for span, _ in self.others:
            held[:, span.row, :, span.start : span.end] = new[begun : begun + span.length].permute(1, 2, 0, 3)
            begun += span.length


def _told(spans: Sequence[Span], like: Tensor) -> Tensor | None:
    """Where in the run the wanted tokens stand; None where all are wanted."""
    if all(span.wants == span.length for span in spans):
        return None
    told, end = list[int](), 0
    for span in spans:
        end += span.length
        told += range(end - span.wants, end)
    return torch.tensor(told, dtype=torch.long, device=like.device)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotary position embedding in place, as Llama turns it: x (n, heads, d), cosine and sine (n, 1, d).

    The first half of sine is negated.
    """
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:], x[..., :half]), -1).mul_(sine)
    x.mul_(cosine).add_(turned)


def _causal(span: Span, groups: int, like: Tensor) -> Tensor:
    mask = torch.full((span.length, span.end), float("-inf"), device=like.device, dtype=like.dtype)
    return mask.triu_(span.start + 1).repeat(groups, 1)
