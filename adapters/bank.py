"""AdapterBank: many adapters resident on one tower (or on the decoder), each row of a batch through its own.

    slot     0    1    2    3                 A[target]  (S, D_in, R)   transposed, ranks padded with zeros
    adapter  -    tb   lung findings          B[target]  (S, R, D_out)  the LoRA scale is folded in
             0 is the base itself, always zero

    with bank.rows([0, 3, 1]):                y[b] += x[b] @ A[rows[b]] @ B[rows[b]]
        backbone.encode_image(pixels)

The layers are watched by forward hooks, so the tower's modules and tensor names stay as they are. Each thread runs its
own batch; adapters come and go in one thread, while no other runs one (`before_change`). `lora.py` is the definition this
must equal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.lora import LoraPair, LoraWeights, check_binding, find_linear
from foundation.errors import InvalidRequest


class HasImageTower(Protocol):
    """What the bank needs of a backbone."""

    @property
    def image_tower(self) -> nn.Module: ...


@dataclass(frozen=True, eq=False)
class _Alone:
    image_tower: nn.Module


class AdapterBank:
    def __init__(self, backbone: HasImageTower) -> None:
        self.tower = backbone.image_tower
        self._residents: dict[int, LoraWeights] = {}
        self._stacks: dict[str, _Stack] = {}
        self.before_change: Callable[[], None] = _nothing  # waits until no other thread runs a batch
        self._running = _Running()

    @classmethod
    def over(cls, module: nn.Module) -> AdapterBank:
        """A bank on any module with linear layers, such as the decoder's language model."""
        return cls(_Alone(module))

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots in use, without slot 0."""
        return tuple(sorted(self._residents))

    def install(self, weights: LoraWeights) -> int:
        """Make an adapter resident; returns its slot. Refused where a tensor does not fit the tower."""
        check_binding(self.tower, weights)
        self.before_change()
        slot = next(number for number in range(1, len(self._residents) + 2) if number not in self._residents)
        self._residents[slot] = weights
        self._restack(weights.spec.targets)
        return slot

    def remove(self, slot: int) -> None:
        self.before_change()
        weights = self._residents.pop(slot, None)
        if weights is None:
            raise InvalidRequest(f"No adapter is resident in slot {slot}; in use are {list(self.slots)}.", param="slot")
        self._restack(weights.spec.targets)

    def close(self) -> None:
        """Take all hooks off the tower."""
        for stack in self._stacks.values():
            stack.handle.remove()
        self._stacks.clear()
        self._residents.clear()

    @contextmanager
    def rows(self, slots: Sequence[int]) -> Iterator[None]:
        """Within this block row b of every batch runs through the adapter in `slots[b]`."""
        unknown = sorted({slot for slot in slots if slot != 0 and slot not in self._residents})
        if unknown:
            raise InvalidRequest(f"No adapter is resident in slots {unknown}; in use are {list(self.slots)}.", param="slots")
        if self._running.rows is not None:
            raise InvalidRequest("The bank is already running a batch; one batch runs at a time.", param="slots")
        device = next(self.tower.parameters()).device
        self._running.rows = torch.tensor(list(slots), dtype=torch.long, device=device)
        self._running.slots = frozenset(slots)
        try:
            yield
        finally:
            self._running.rows = None

    def _restack(self, targets: Sequence[str]) -> None:
        for name in targets:
            pairs = {slot: (w.pairs[name], w.spec.scale) for slot, w in self._residents.items() if name in w.pairs}
            previous = self._stacks.pop(name, None)
            if previous is not None:
                previous.handle.remove()
            if pairs:
                self._stacks[name] = _Stack(self, find_linear(self.tower, name), pairs)


class _Running(threading.local):
    """The batch this thread runs: the slot of each row (B,), None between batches."""

    rows: Tensor | None = None
    slots: frozenset[int] = frozenset()


def _nothing() -> None:
    return


class _Stack:
    """The stacked factors of one layer, and the hook that adds them."""

    def __init__(self, bank: AdapterBank, linear: nn.Linear, pairs: dict[int, tuple[LoraPair, float]]) -> None:
        self.bank = bank
        self.slots = frozenset(pairs)
        slots, rank = max(pairs) + 1, max(pair.A.shape[0] for pair, _ in pairs.values())
        # NOTE: slots of adapters that leave this layer alone may lie above max(pairs); `_add` reads slot 0 for them.
        self.A = linear.weight.new_zeros(slots, linear.in_features, rank)
        self.B = linear.weight.new_zeros(slots, rank, linear.out_features)
        for slot, (pair, scale) in pairs.items():
            own = pair.A.shape[0]
            self.A[slot, :, :own] = pair.A.T
            self.B[slot, :own, :] = pair.B.T * scale
        self.handle: RemovableHandle = linear.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        running = self.bank._running
        rows = running.rows
        if rows is None or running.slots.isdisjoint(self.slots):
            return None
        x = inputs[0]
        if x.shape[0] != rows.shape[0]:
            raise InvalidRequest(f"The batch has {x.shape[0]} rows, but slots were given for {rows.shape[0]}.", param="slots")
        index = torch.where(rows < self.A.shape[0], rows, 0)
        A, B = self.A[index].to(output.dtype), self.B[index].to(output.dtype)
        flat = x.reshape(x.shape[0], -1, x.shape[-1]).to(output.dtype)  # (B, N, D_in)
        y = output.reshape(output.shape[0], -1, output.shape[-1])  # (B, N, D_out)
        return torch.baddbmm(y, torch.bmm(flat, A), B).reshape(output.shape)
