"""A cache that forgets what is asked for least often, and of that what was asked for longest ago.

Least frequently used with dynamic ageing (Arlitt et al. 2000): a use is worth more the later it comes, so that what was
popular once does not stay for ever, and a sweep over many rare entries does not drive out the few that everybody asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass
class _Entry(Generic[V]):
    value: V
    uses: int
    worth: int
    last_used: int


class FrequentCache(Generic[K, V]):
    """Unbounded: whoever fills it makes room with `evict`. Not thread-safe: it belongs to the engine's one thread."""

    def __init__(self) -> None:
        self._held: dict[K, _Entry[V]] = {}
        self._age = 0  # the worth of what left last
        self._clock = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: K) -> bool:
        return key in self._held

    def get(self, key: K) -> V | None:
        entry = self._held.get(key)
        if entry is None:
            return None
        self._use(entry)
        return entry.value

    def put(self, key: K, value: V) -> None:
        entry = self._held[key] = _Entry(value, 0, 0, 0)
        self._use(entry)

    def values(self) -> tuple[V, ...]:
        return tuple(entry.value for entry in self._held.values())

    def evict(self, may_go: Callable[[K], bool]) -> V | None:
        """Take out the entry of least worth that may go; None if none may."""
        candidates = (key for key in self._held if may_go(key))
        key = min(candidates, key=lambda one: (self._held[one].worth, self._held[one].last_used), default=None)
        if key is None:
            return None
        entry = self._held.pop(key)
        self._age = max(self._age, entry.worth)
        return entry.value

    def _use(self, entry: _Entry[V]) -> None:
        self._clock += 1
        entry.uses += 1
        entry.worth = self._age + entry.uses
        entry.last_used = self._clock
