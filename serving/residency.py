"""Residency: which adapters are in the bank, under which slot, by name and content digest.

An adapter becomes resident when it is first asked for or loaded by hand: its hashes and its base are checked, and what
it makes of a test film through the bank is compared with the plain definition of LoRA. New files under the same name are
a new digest, so they take a new slot, and who asked for the old one is answered by the old one while it is resident.
What is asked for least recently leaves when the bank is full; what a batch uses stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from adapters.bank import AdapterBank
from adapters.card import AdapterCard
from adapters.files import Adapter, read_adapter
from adapters.store import AdapterStore, StoredAdapter
from adapters.tasks.openers import Opened, open_task
from foundation.errors import AdapterError, AdapterNotFound, AdapterRefused, InvalidRequest
from serving.cache import LruCache
from serving.self_test import check_adapter
from serving.trunk import first_block

if TYPE_CHECKING:
    from foundation.backbone import Backbone

OpenedT = TypeVar("OpenedT")
_MOMENT_S = 0.005


@dataclass(frozen=True, eq=False)
class Resident:
    """An adapter in memory: its slot in the bank, the block it begins at, its task, and the digest of its files.

    deviation: how far the bank was from the plain definition on the test film.
    """

    name: str
    digest: str
    slot: int
    first_block: int
    task: Opened
    deviation: float

    @property
    def card(self) -> AdapterCard:
        return self.task.card

    def opened(self, kind: type[OpenedT]) -> OpenedT:
        """What answers for it. Raises InvalidRequest where the adapter is of another task."""
        if not isinstance(self.task, kind):
            raise InvalidRequest(f"The adapter {self.name!r} is for {self.card.task}. Ask it for that.", param="model")
        return self.task


class Residency:
    """Owns the bank of one backbone. `capacity` counts adapters, those of the running batch included."""

    def __init__(self, backbone: Backbone, store: AdapterStore, capacity: int, unloaded: Iterable[str] = ()) -> None:
        self.bank = AdapterBank(backbone)
        self._backbone = backbone
        self._store = store
        self._residents: LruCache[str, Resident] = LruCache(capacity + 1)
        self._capacity = capacity
        self._unloaded = set(unloaded)

    @property
    def first_blocks(self) -> frozenset[int]:
        """The blocks at which resident adapters begin."""
        return frozenset(resident.first_block for resident in self._residents.values() if resident.first_block >= 0)

    def has(self, name: str, task: str) -> bool:
        """Whether an adapter of this name and task, made for this base, may be asked."""
        try:
            card = self._store.get(name).card
        except AdapterError:
            return False
        return name not in self._unloaded and (card.task, card.base.fingerprint) == (task, self._backbone.fingerprint)

    def take(self, name: str, pinned: Iterable[str] = (), digest: str = "") -> Resident:
        """The adapter, resident. pinned: digests that must stay. Raises AdapterNotFound or AdapterRefused.

        digest: of the adapter as the asker knew it, who is answered by it for as long as it is resident.
        """
        held = self._residents.get(digest) if digest else None
        if held is not None:
            return held
        if name in self._unloaded:
            raise AdapterNotFound(f"The adapter {name!r} has been unloaded. An operator can load it again.", param="model")
        stored = self._stored(name)
        return self._residents.get(stored.digest) or self._install(stored, pinned)

    def allow(self, name: str, digest: str = "") -> StoredAdapter:
        """Let it be asked again, as the store holds it under this name. digest: what that must be."""
        stored = self._stored(name)
        if digest and stored.digest != digest:
            raise AdapterRefused(
                f"The store holds {stored.digest[:12]} under the name {name!r}, not {digest[:12]}. Add that one first.",
                param="digest",
            )
        self._unloaded.discard(name)
        return stored

    def unload(self, name: str, pinned: Iterable[str] = ()) -> bool:
        """Ask no more for this name, and free its slots; False where none was resident. The store keeps its files."""
        self._store.get(name)
        self._unloaded.add(name)
        gone = [resident for resident in self._residents.values() if resident.name == name]
        for resident in gone:
            if resident.digest not in set(pinned):
                self._drop(self._residents.evict(resident.digest.__eq__))
        return bool(gone)

    def _stored(self, name: str) -> StoredAdapter:
        """As the store holds it. While the store replaces a folder there is none for a moment, which is waited for."""
        try:
            return self._store.get(name)
        except AdapterNotFound:
            time.sleep(_MOMENT_S)
            return self._store.get(name)

    def _install(self, stored: StoredAdapter, pinned: Iterable[str]) -> Resident:
        adapter = self._read(stored)
        opened = open_task(adapter.card, adapter.head)
        opened.head.to(self._backbone.device)
        self._make_room(set(pinned))
        slot = self.bank.install(adapter.lora)
        try:
            deviation = check_adapter(self._backbone, self.bank, slot, adapter)
        except AdapterError:
            self.bank.remove(slot)
            raise
        resident = Resident(stored.name, adapter.digest, slot, first_block(adapter.lora), opened, deviation)
        self._residents.put(adapter.digest, resident)
        return resident

    def _read(self, stored: StoredAdapter) -> Adapter:
        """Its files, all of one version: one that is replaced while it is read is read again."""
        for _ in range(3):
            adapter = read_adapter(stored.folder, self._backbone)
            if adapter.digest == stored.digest:
                return adapter
            stored = self._store.get(stored.name)
        raise AdapterRefused(f"The adapter {stored.name!r} changes while it is read. Load it once it is whole.", param="model")

    def _make_room(self, pinned: set[str]) -> None:
        while len(self._residents) >= self._capacity:
            gone = self._residents.evict(lambda digest: digest not in pinned)
            if gone is None:
                return
            self._drop(gone)

    def _drop(self, resident: Resident | None) -> None:
        if resident is not None:
            self.bank.remove(resident.slot)
