"""What the trunk saw of recent films, so that a second question about a film costs only what is new.

Kept are features, of the end of the trunk, and states of the base before some block, from which an adapter that begins
there goes on. The key is everything that either depends on and whose it is: tenant, pixels as the model eats them, the
adapter's files, the block; the cache lives and dies with one opened model, so model and preprocessing are the same for
all of it. Two tenants never share an entry: how fast an answer comes tells nobody what another asked.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from foundation.backbone import ImageFeatures
    from foundation.towers.tower import TrunkState

HeldT = TypeVar("HeldT", "ImageFeatures", "TrunkState")
THE_END = -1


@dataclass(frozen=True)
class FeatureKey:
    """study: the film's digest, by which all entries of a film are found; pixels: of the one view. Full digests."""

    tenant: str
    study: str
    pixels: str
    adapter: str
    block: int = THE_END

    @classmethod
    def of(cls, tenant: str, study: str, pixels: bytes, adapter: str, block: int = THE_END) -> FeatureKey:
        return cls(tenant, study, hashlib.sha256(pixels).hexdigest(), adapter, block)


class FeatureCache(Generic[HeldT]):
    """At most `capacity_bytes` of tensors; what was used least recently goes first. For the engine's one thread."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._held: OrderedDict[FeatureKey, HeldT] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: FeatureKey) -> HeldT | None:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: FeatureKey, features: HeldT, *, is_own: bool = False) -> None:
        """Keep a copy: a row of a batch would keep the whole batch alive. is_own: that it is no part of one."""
        size = _bytes_of(features)
        if key in self._held or size > self.capacity_bytes:
            return
        self._held[key] = features if is_own else _copied(features)
        self.held_bytes += size
        while self.held_bytes > self.capacity_bytes:
            self._drop(next(iter(self._held)))

    def forget(self, tenant: str, study: str = "") -> int:
        """Drop what is kept of one tenant's film, or of all of the tenant's films; how many entries that were."""
        gone = [key for key in self._held if key.tenant == tenant and study in ("", key.study)]
        for key in gone:
            self._drop(key)
        return len(gone)

    def _drop(self, key: FeatureKey) -> None:
        self.held_bytes -= _bytes_of(self._held.pop(key))


def _copied(held: HeldT) -> HeldT:
    return replace(held, **{name: _copy(value) for name, value in _values(held).items()})


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(_copy(one) for one in value) if isinstance(value, tuple) else value


def _bytes_of(held: Any) -> int:
    return sum(_bytes(value) for value in _values(held).values())


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(one) for one in value) if isinstance(value, tuple) else 0


def _values(held: Any) -> dict[str, Any]:
    return {field.name: getattr(held, field.name) for field in fields(held)}
