"""A cache that forgets what was used least recently. Keys are whole values or full digests, never shortened ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """At most `capacity` entries. Not thread-safe: it belongs to the engine's one thread."""

    def __init__(self, capacity: int) -> None:
        assert capacity > 0
        self.capacity = capacity
        self._held: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: K) -> bool:
        return key in self._held

    def get(self, key: K) -> V | None:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def values(self) -> tuple[V, ...]:
        return tuple(self._held.values())

    def put(self, key: K, value: V) -> None:
        self._held[key] = value
        self._held.move_to_end(key)
        while len(self._held) > self.capacity:
            self._held.popitem(last=False)

    def evict(self, may_go: Callable[[K], bool]) -> V | None:
        """Take out the entry unused for longest that may go; None if none may."""
        key = next((key for key in self._held if may_go(key)), None)
        return None if key is None else self._held.pop(key)
