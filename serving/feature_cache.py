"""What the trunk saw of recent films, so that a second question about a film costs only what is new.

The key is everything that the features depend on and whose they are: tenant, pixels as the model eats them, the
adapter's files; the cache lives and dies with one opened model, so model and preprocessing are the same for all of it.
Two tenants never share an entry: how fast an answer comes tells nobody what another asked.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foundation.backbone import ImageFeatures


@dataclass(frozen=True)
class FeatureKey:
    """study: the film's digest, by which all entries of a film are found; pixels: of the one view. Full digests."""

    tenant: str
    study: str
    pixels: str
    adapter: str

    @classmethod
    def of(cls, tenant: str, study: str, pixels: bytes, adapter: str) -> FeatureKey:
        return cls(tenant, study, hashlib.sha256(pixels).hexdigest(), adapter)


class FeatureCache:
    """At most `capacity_bytes` of tensors; what was used least recently goes first. For the engine's one thread."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._held: OrderedDict[FeatureKey, ImageFeatures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: FeatureKey) -> ImageFeatures | None:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: FeatureKey, features: ImageFeatures) -> None:
        """Keep a copy: a row of a batch would keep the whole batch alive."""
        size = _bytes_of(features)
        if key in self._held or size > self.capacity_bytes:
            return
        self._held[key] = _copied(features)
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


def _copied(features: ImageFeatures) -> ImageFeatures:
    levels = tuple(level.clone() for level in features.levels)
    return type(features)(features.embedding.clone(), features.tokens.clone(), levels, features.grid)


def _bytes_of(features: ImageFeatures) -> int:
    return sum(one.numel() * one.element_size() for one in (features.embedding, features.tokens, *features.levels))
