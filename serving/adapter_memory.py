"""AdapterMemory: adapters that have been read and tried, kept ready beside the bank, counted in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class AdapterMemory(Generic[V]):
    """By digest; what was used least recently goes first. For the engine's one thread."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._held: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def __len__(self) -> int:
        return len(self._held)

    def get(self, digest: str) -> V | None:
        if digest not in self._held:
            return None
        self._held.move_to_end(digest)
        return self._held[digest][0]

    def values(self) -> tuple[V, ...]:
        return tuple(value for value, _ in self._held.values())

    def put(self, digest: str, value: V, size_bytes: int) -> None:
        if size_bytes > self.capacity_bytes or digest in self._held:
            return
        self._held[digest] = (value, size_bytes)
        self.held_bytes += size_bytes
        while self.held_bytes > self.capacity_bytes:
            self._drop(next(iter(self._held)))

    def forget(self, is_gone: Callable[[V], bool]) -> None:
        for digest in [digest for digest, (value, _) in self._held.items() if is_gone(value)]:
            self._drop(digest)

    def _drop(self, digest: str) -> None:
        self.held_bytes -= self._held.pop(digest)[1]
