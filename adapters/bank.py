"""AdapterBank: many adapters resident on one tower (or on the decoder), each row of a batch through its own.

    slot     0    1    2    3                 A[target]  (places, D_in, R)     transposed, ranks padded with zeros
    adapter  -    tb   lung findings          B[target]  (places, 1 + R, D_out)  the layer's bias, then B with the scale
             0 is the base itself, always zero

    with bank.rows([0, 3, 1]):                y[b] = x[b] @ W + bias + x[b] @ A[rows[b]] @ B[rows[b]]
        backbone.encode_image(pixels)

Slots are counted in bytes: what is installed never passes `capacity_bytes`. Adapters of like rank share stacks
(`stacks.py`), which stand before the first adapter comes, so that installing one is a copy into its place. The layers'
`forward` is replaced while the bank is open; the tower's modules and tensor names stay as they are. Each thread runs its
own batch; adapters come and go in one thread, while no other runs one (`before_change`). `lora.py` is the definition this
must equal.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from adapters.lora import LoraWeights, check_binding, find_linear
from adapters.stacks import AdaptedLinear, Picked, Running, rank_class
from foundation.errors import InvalidRequest, Overloaded

DEFAULT_BYTES = 256 << 20
_PATIENCE_S = 1.0


class HasImageTower(Protocol):
    """What the bank needs of a backbone."""

    @property
    def image_tower(self) -> nn.Module: ...


@dataclass(frozen=True, eq=False)
class _Alone:
    image_tower: nn.Module


@dataclass(frozen=True)
class _Resident:
    """Where an adapter lies: its rank class, its place in the stacks of that class, the layers it adapts, and its bytes."""

    rank: int
    place: int
    targets: frozenset[str]
    size_bytes: int


class AdapterBank:
    """capacity_bytes: of the factors installed at one time, as padded, in the tower's number format."""

    def __init__(self, backbone: HasImageTower, capacity_bytes: int = DEFAULT_BYTES) -> None:
        self.tower = backbone.image_tower
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._residents: dict[int, _Resident] = {}
        self._layers: dict[str, AdaptedLinear] = {}
        self._users: Counter[str] = Counter()  # how many residents adapt a layer
        self._free_slots = _Numbers()
        self._free_places: dict[int, _Numbers] = {}  # by rank class
        self.before_change: Callable[[], None] = _nothing  # waits until no other thread runs a batch
        self._running = Running()

    @classmethod
    def over(cls, module: nn.Module, capacity_bytes: int = DEFAULT_BYTES) -> AdapterBank:
        """A bank on any module with linear layers, such as the decoder's language model."""
        return cls(_Alone(module), capacity_bytes)

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots in use, without slot 0."""
        return tuple(sorted(self._residents))

    def bytes_of(self, weights: LoraWeights) -> int:
        """What an adapter takes of the capacity."""
        rank = rank_class(weights.spec.rank)
        return sum(AdaptedLinear.bytes_of(find_linear(self.tower, name), rank) for name in weights.spec.targets)

    def has_room(self, size_bytes: int) -> bool:
        return self.held_bytes + size_bytes <= self.capacity_bytes

    def install(self, weights: LoraWeights) -> int:
        """Make an adapter resident; returns its slot. Refused where a tensor does not fit the tower, or there is no room."""
        check_binding(self.tower, weights)
        size_bytes = self.bytes_of(weights)
        if not self.has_room(size_bytes):
            raise Overloaded(
                f"The adapter takes {size_bytes >> 10} KiB; {self.held_bytes >> 10} of {self.capacity_bytes >> 10} KiB for "
                "adapters are in use. Start the server with more --adapter-memory.",
                retry_after_s=_PATIENCE_S,
            )
        self.before_change()
        rank = rank_class(weights.spec.rank)
        place, slot = self._free_places.setdefault(rank, _Numbers()).take(), self._free_slots.take()
        places = 1 + max(1, self.capacity_bytes // size_bytes)
        for name, pair in weights.pairs.items():
            self._layer(name).put(rank, place, pair, weights.spec.scale, places)
            self._users[name] += 1
        self._residents[slot] = _Resident(rank, place, frozenset(weights.pairs), size_bytes)
        self.held_bytes += size_bytes
        return slot

    def remove(self, slot: int) -> None:
        """Free a slot. The factors stay where they lie until another adapter takes the place; no row reads them."""
        self.before_change()
        resident = self._residents.pop(slot, None)
        if resident is None:
            raise InvalidRequest(f"No adapter is resident in slot {slot}; in use are {list(self.slots)}.", param="slot")
        self.held_bytes -= resident.size_bytes
        self._free_slots.give_back(slot)
        self._free_places[resident.rank].give_back(resident.place)
        self._users.subtract(resident.targets)
        for name in resident.targets:
            if not self._users[name]:
                self._layers.pop(name).close()

    def close(self) -> None:
        """Give all layers their own forward back."""
        for layer in self._layers.values():
            layer.close()
        self._layers.clear()
        self._residents.clear()
        self._users.clear()
        self._free_slots, self._free_places = _Numbers(), {}
        self.held_bytes = 0

    @contextmanager
    def rows(self, slots: Sequence[int]) -> Iterator[None]:
        """Within this block row b of every batch runs through the adapter in `slots[b]`."""
        unknown = sorted({slot for slot in slots if slot != 0 and slot not in self._residents})
        if unknown:
            raise InvalidRequest(f"No adapter is resident in slots {unknown}; in use are {list(self.slots)}.", param="slots")
        if self._running.is_on:
            raise InvalidRequest("The bank is already running a batch; one batch runs at a time.", param="slots")
        self._running.is_on = True
        try:
            self._pick(slots)
            yield
        finally:
            self._running.is_on, self._running.picks = False, {}

    def _pick(self, slots: Sequence[int]) -> None:
        """For this thread, which place of which stack each row is to read in each layer. Layers that the same slots adapt share
        the answer.
        """
        residents = {slot: self._residents[slot] for slot in set(slots) if slot}
        made: dict[frozenset[int], Picked | None] = {}
        picks: dict[AdaptedLinear, Picked] = {}
        for name, layer in self._layers.items():
            own = frozenset(slot for slot, one in residents.items() if name in one.targets)
            if own not in made:
                places = [(residents[slot].rank, residents[slot].place) if slot in own else None for slot in slots]
                made[own] = Picked.of(places, layer.device) if own else None
            if (picked := made[own]) is not None:
                picks[layer] = picked
        self._running.picks = picks

    def _layer(self, name: str) -> AdaptedLinear:
        if name not in self._layers:
            self._layers[name] = AdaptedLinear(find_linear(self.tower, name), self._running)
        return self._layers[name]


def _nothing() -> None:
    return


class _Numbers:
    """Gives out the smallest free number, from 1 on."""

    def __init__(self) -> None:
        self._next = 1
        self._returned: list[int] = []

    def take(self) -> int:
        if self._returned:
            return heapq.heappop(self._returned)
        self._next += 1
        return self._next - 1

    def give_back(self, number: int) -> None:
        heapq.heappush(self._returned, number)
