"""Residency: which adapters are in the bank, under which slot, by name and content digest.

An adapter becomes resident when it is first asked for, after its hashes and its base were checked. New files under
the same name are a new digest, so they take a new slot; what is asked for least recently leaves when the bank is full.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.bank import AdapterBank
from adapters.files import read_adapter
from adapters.store import AdapterStore, StoredAdapter
from adapters.tasks.classification import Classifier
from foundation.errors import AdapterNotFound
from serving.cache import LruCache

if TYPE_CHECKING:
    from foundation.backbone import Backbone


@dataclass(frozen=True, eq=False)
class Resident:
    """An adapter in memory: its slot in the bank, its head, and the digest of the files it came from."""

    name: str
    digest: str
    slot: int
    classifier: Classifier


class Residency:
    """Owns the bank of one backbone. `capacity` counts adapters, those of the running batch included."""

    def __init__(self, backbone: Backbone, store: AdapterStore, capacity: int) -> None:
        self.bank = AdapterBank(backbone)
        self._backbone = backbone
        self._store = store
        self._residents: LruCache[str, Resident] = LruCache(capacity + 1)
        self._capacity = capacity

    def has(self, name: str) -> bool:
        """Whether the store holds an adapter of this name made for this base."""
        try:
            return self._store.get(name).card.base.fingerprint == self._backbone.fingerprint
        except AdapterNotFound:
            return False

    def take(self, name: str, pinned: Iterable[str] = ()) -> Resident:
        """The adapter, resident. pinned: digests that must stay. Raises AdapterNotFound or AdapterRefused."""
        stored = self._store.get(name)
        resident = self._residents.get(stored.digest)
        if resident is None:
            self._make_room(set(pinned))
            resident = self._install(stored)
            self._residents.put(stored.digest, resident)
        return resident

    def _install(self, stored: StoredAdapter) -> Resident:
        adapter = read_adapter(stored.folder, self._backbone)
        classifier = Classifier.open(adapter.card, adapter.head)
        classifier.head.to(self._backbone.device)
        return Resident(stored.name, stored.digest, self.bank.install(adapter.lora), classifier)

    def _make_room(self, pinned: set[str]) -> None:
        while len(self._residents) >= self._capacity:
            gone = self._residents.evict(lambda digest: digest not in pinned)
            if gone is None:
                return
            self.bank.remove(gone.slot)
