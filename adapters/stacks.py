"""The stacked factors of one linear layer, and the forward that runs every row of a batch through its own of them.

On the CPU a linear layer copies its bias into the output and lets the matrix product add to it. Here what is copied is
bias + x A B, one small batched product ([1, x A] times [bias; B]), so that the adapters cost no further pass over the
output. On other devices, whose products take a bias for nothing, x A B is added to the output in place.

    rank classes   8, 16, 32, ...      a rank is padded to the next of them; each has a stack of its own
    place 0        the base            A is zero, B is the bias alone
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.lora import LoraPair
from foundation.errors import InvalidRequest

SMALLEST_RANK = 8
_FIRST_PLACES = 8  # of a stack on a device whose memory is not given out lazily; doubled when it is full


def rank_class(rank: int) -> int:
    """The rank that `rank` is padded to."""
    return max(SMALLEST_RANK, 1 << (rank - 1).bit_length())


@dataclass(frozen=True, eq=False)
class Picked:
    """Which places a batch reads. The adapted rows lie in [start, stop); those between that are not read place 0.

    parts: for each rank class its rows, counted from `start`, and their places, both (n,); one place for all rows of the
    batch's only class where they are alike.
    """

    rows: int
    start: int
    stop: int
    rank: int
    is_alike: bool
    parts: tuple[tuple[int, Tensor | None, Tensor], ...]

    @classmethod
    def of(cls, places: Sequence[tuple[int, int] | None], device: torch.device) -> Picked:
        """places: for each row of the batch its rank class and place, None for the base."""
        adapted = [row for row, one in enumerate(places) if one is not None]
        start, stop = adapted[0], adapted[-1] + 1
        inner = places[start:stop]
        ranks = sorted({one[0] for one in inner if one is not None})
        if len(ranks) == 1:
            numbers = [one[1] if one is not None else 0 for one in inner]
            is_alike = len(set(numbers)) == 1
            index = torch.tensor(numbers[:1] if is_alike else numbers, dtype=torch.long, device=device)
            return cls(len(places), start, stop, ranks[0], is_alike, ((ranks[0], None, index),))
        parts: list[tuple[int, Tensor | None, Tensor]] = []
        for rank in ranks:  # the base's rows go with the first class
            own = [
                (row, one[1] if one else 0) for row, one in enumerate(inner) if (one[0] == rank if one else rank == ranks[0])
            ]
            rows, index = (torch.tensor(side, dtype=torch.long, device=device) for side in zip(*own, strict=True))
            parts.append((rank, rows, index))
        return cls(len(places), start, stop, ranks[-1], False, tuple(parts))


class _Stack:
    """Factors of one rank class: A (P, D_in, R), B (P, 1 + R, D_out)."""

    def __init__(self, linear: nn.Linear, bias: Tensor, rank: int, places: int) -> None:
        self._bias = bias
        weight = linear.weight
        is_lazy = weight.device.type == "cpu"
        first = places if is_lazy else min(places, _FIRST_PLACES)
        self.A = _zeros((first, linear.in_features, rank), weight)
        self.B = _zeros((first, 1 + rank, linear.out_features), weight)
        self._put_bias(0)

    def put(self, place: int, pair: LoraPair, scale: float) -> None:
        if place >= len(self.A):
            self._grow(max(place + 1, 2 * len(self.A)))
        own = pair.A.shape[0]
        A, B = self.A[place], self.B[place]
        A[:, own:] = 0
        A[:, :own] = pair.A.to(A.device, non_blocking=True).T
        self._put_bias(place)
        B[1 + own :] = 0
        B[1 : 1 + own] = pair.B.to(B.device, non_blocking=True).T * scale

    def _put_bias(self, place: int) -> None:
        self.B[place, 0] = self._bias

    def _grow(self, places: int) -> None:
        for name in ("A", "B"):
            old = getattr(self, name)
            new = _zeros((places, *old.shape[1:]), old)
            new[: len(old)] = old
            setattr(self, name, new)


class Running(threading.local):
    """The batch that this thread runs through a bank, and what each adapted layer is to read of it."""

    is_on: bool = False
    picks: Mapping[AdaptedLinear, Picked] = {}  # replaced, never written to


class AdaptedLinear:
    """A linear layer whose forward reads its part of `running.picks`; without one the layer is what it was, to the bit."""

    def __init__(self, linear: nn.Linear, running: Running) -> None:
        self._running = running
        self._linear = linear
        self._own: Any = linear.forward
        self._stacks: dict[int, _Stack] = {}
        bias: Tensor | None = linear.bias
        self._bias = linear.weight.new_zeros(()) if bias is None else bias
        linear.__dict__["forward"] = self.forward

    @property
    def device(self) -> torch.device:
        return self._linear.weight.device

    @staticmethod
    def bytes_of(linear: nn.Linear, rank: int) -> int:
        """Of one place."""
        numbers = linear.in_features * rank + (1 + rank) * linear.out_features
        return numbers * linear.weight.element_size()

    def close(self) -> None:
        del self._linear.__dict__["forward"]

    @torch.no_grad()
    def put(self, rank: int, place: int, pair: LoraPair, scale: float, places: int) -> None:
        """Copy a pair into a place. places: how many a new stack is to have where that costs nothing."""
        stack = self._stacks.get(rank)
        if stack is None:
            stack = self._stacks[rank] = _Stack(self._linear, self._bias, rank, max(places, place + 1))
        stack.put(place, pair, scale)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ..., D_in) -> (B, ..., D_out)."""
        picked, weight = self._running.picks.get(self), self._linear.weight
        if picked is None:
            whole: Tensor = self._own(x)
            return whole
        if x.shape[0] != picked.rows:
            raise InvalidRequest(f"The batch has {x.shape[0]} rows, but slots were given for {picked.rows}.", param="slots")
        A, B = self._factors(picked)
        is_plain = x.dtype == weight.dtype == A.dtype and not (torch.is_grad_enabled() and x.requires_grad)
        if is_plain and weight.device.type == "cpu":
            return self._in_one(x, picked, A, B)
        y: Tensor = self._own(x)
        return self._added(x, y, picked, A, B)

    def _factors(self, picked: Picked) -> tuple[Tensor, Tensor]:
        """A (n, D_in, R) and B (n, 1 + R, D_out) of the adapted rows, or of all of them as one (n = 1)."""
        if len(picked.parts) == 1:
            ((rank, _, index),) = picked.parts
            stack = self._stacks[rank]
            return stack.A.index_select(0, index), stack.B.index_select(0, index)
        count, weight = picked.stop - picked.start, self._linear.weight
        A = weight.new_zeros(count, self._linear.in_features, picked.rank)
        B = weight.new_zeros(count, 1 + picked.rank, self._linear.out_features)
        for rank, rows, index in picked.parts:
            stack = self._stacks[rank]
            A[rows, :, :rank] = stack.A.index_select(0, index)
            B[rows, : 1 + rank] = stack.B.index_select(0, index)
        return A, B

    def _in_one(self, x: Tensor, picked: Picked, A: Tensor, B: Tensor) -> Tensor:
        """bias + x A B first, then x W added to it: the order in which the layer itself adds its bias."""
        linear, rows = self._linear, picked.rows
        flat = x.reshape(rows, -1, x.shape[-1])  # (B, N, D_in)
        y = x.new_empty(rows, flat.shape[1], linear.out_features)
        for outside in (y[: picked.start], y[picked.stop :]):
            outside.copy_(self._bias)
        inside = slice(picked.start, picked.stop)
        shape = (len(A), -1)
        low = torch.bmm(flat[inside].reshape(*shape, flat.shape[-1]), A)  # (n, N, R)
        torch.bmm(F.pad(low, (1, 0), value=1.0), B, out=y[inside].view(*shape, linear.out_features))
        y.view(-1, linear.out_features).addmm_(flat.reshape(-1, flat.shape[-1]), linear.weight.t())
        return y.view(*x.shape[:-1], linear.out_features)

    def _added(self, x: Tensor, y: Tensor, picked: Picked, A: Tensor, B: Tensor) -> Tensor:
        inside = slice(picked.start, picked.stop)
        A, B = A.to(y.dtype), B[:, 1:].to(y.dtype)
        flat = x.to(y.dtype)[inside].reshape(len(A), -1, x.shape[-1])
        low = torch.bmm(flat, A)
        if y.requires_grad or not y.is_contiguous():
            added = torch.bmm(low, B).view(-1, *y.shape[1:])
            return torch.cat([y[: picked.start], y[inside] + added, y[picked.stop :]])
        y[inside].view(len(A), -1, y.shape[-1]).baddbmm_(low, B)
        return y


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros; on the CPU such as take no memory before they are written to."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * like.element_size()), np.uint8)).view(like.dtype)
