"""Residency: which adapters are in the bank, under which slot, by name and content digest.

    disk (the store)  --read and checked, `adapter_loader.py`-->  memory  --tried, then copied into a slot-->  the bank
                                                                   |  ^
                                                                   +--+  what leaves the bank stays here while there is room

An adapter becomes resident when it is first asked for or loaded by hand: its hashes and its base are checked, and what
it makes of a test film through the bank is compared with the plain definition of LoRA. New files under the same name are
a new digest, so they take a new slot, and who asked for the old one is answered by the old one while it is here. New
files that are refused change nothing: the version before goes on answering, under its own digest, until it has left.
What is asked for least leaves when the bank is full; what a batch uses stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from adapters.bank import DEFAULT_BYTES, AdapterBank
from adapters.card import AdapterCard
from adapters.files import Adapter, bind_adapter, parse_adapter
from adapters.store import AdapterStore, StoredAdapter
from adapters.tasks.openers import Opened, open_task
from foundation.errors import AdapterError, AdapterNotFound, AdapterRefused, InvalidRequest, Overloaded, VesaliusError
from foundation.look import Look, further_looks
from serving.adapter_loader import AdapterLoader
from serving.adapter_memory import AdapterMemory
from serving.frequent_cache import FrequentCache
from serving.self_test import SelfTest
from serving.trunk import first_block

if TYPE_CHECKING:
    from foundation.backbone import Backbone

OpenedT = TypeVar("OpenedT")
log = logging.getLogger("serving.residency")
_MOMENT_S = 0.005
_PATIENCE_S = 1.0


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


@dataclass(frozen=True, eq=False)
class _Tried:
    """A resident that has passed its test, and the factors to install it again from."""

    resident: Resident
    adapter: Adapter

    @property
    def size_bytes(self) -> int:
        pairs = self.adapter.lora.pairs.values()
        tensors = [side for pair in pairs for side in (pair.A, pair.B)] + list(self.adapter.head.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Residency:
    """Owns the bank of one backbone. capacity_bytes: of the bank; memory_bytes: of adapters kept ready beside it."""

    def __init__(
        self,
        backbone: Backbone,
        store: AdapterStore,
        capacity_bytes: int = DEFAULT_BYTES,
        unloaded: Iterable[str] = (),
        *,
        memory_bytes: int = 0,
        loader: AdapterLoader | None = None,
    ) -> None:
        self.bank = AdapterBank(backbone, capacity_bytes)
        self.installs = 0  # slots filled so far
        self._backbone = backbone
        self._store = store
        self._residents: FrequentCache[str, Resident] = FrequentCache()
        self._memory: AdapterMemory[_Tried] = AdapterMemory(memory_bytes)
        self._loader = loader or AdapterLoader()
        self._test = SelfTest(backbone, self.bank)
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

    def looks_of(self, name: str) -> tuple[Look, ...]:
        """The further looks that an adapter's head takes at films, as its card says; none where that cannot be told."""
        try:
            head = self._store.get(name).card.head
            return further_looks(head.get("sizes", ()), bool(head.get("is_mirrored", False)))
        except (VesaliusError, TypeError, ValueError):
            return ()

    def absent(self, name: str, digest: str = "", *, is_load: bool = False) -> StoredAdapter | None:
        """The adapter in the store, if it must be read before it is taken; None also where `take` will say what is wrong."""
        if (digest and self._is_here(digest)) or (name in self._unloaded and not is_load):
            return None
        try:
            stored = self._store.get(name)
        except AdapterError:
            return None
        return None if self._is_here(stored.digest) or self._loader.has(stored.digest) else stored

    def take(self, name: str, pinned: Iterable[str] = (), digest: str = "", *, falls_back: bool = True) -> Resident:
        """The adapter, resident. pinned: digests that must stay. Raises AdapterNotFound, AdapterRefused or Overloaded.

        digest: of the adapter as the asker knew it, who is answered by it for as long as it is here. falls_back: to the
        version before, where the store's is refused.
        """
        pinned = set(pinned)
        held = self._held(digest, pinned) if digest else None
        if held is not None:
            return held
        if name in self._unloaded:
            raise AdapterNotFound(f"The adapter {name!r} has been unloaded. An operator can load it again.", param="model")
        try:
            stored = self._stored(name)
            return self._held(stored.digest, pinned) or self._install(stored, pinned)
        except AdapterRefused as error:
            before = self._version_before(name, pinned) if falls_back else None
            if before is None:
                raise
            log.warning("adapter %s: its new version is refused, %s answers on: %s", name, before.digest[:12], error.message)
            return before

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
        self._memory.forget(lambda tried: tried.resident.name == name)
        gone = [resident for resident in self._residents.values() if resident.name == name]
        for resident in gone:
            if resident.digest not in set(pinned):
                self._drop(self._residents.evict(resident.digest.__eq__))
        return bool(gone)

    def _is_here(self, digest: str) -> bool:
        return digest in self._residents or digest in self._memory

    def _held(self, digest: str, pinned: set[str]) -> Resident | None:
        """The adapter of this digest, from its slot, or put into one again from memory; it has been tried before."""
        resident = self._residents.get(digest)
        if resident is not None:
            return resident
        tried = self._memory.get(digest)
        if tried is None:
            return None
        slot = self._place(tried.adapter, pinned)
        resident = replace(tried.resident, slot=slot)
        self._residents.put(digest, resident)
        return resident

    def _version_before(self, name: str, pinned: set[str]) -> Resident | None:
        """The version of this name that was tried last, of those still here."""
        digests = [resident.digest for resident in self._residents.values() if resident.name == name]
        digests += [tried.resident.digest for tried in self._memory.values() if tried.resident.name == name]
        return self._held(digests[-1], pinned) if digests else None

    def _stored(self, name: str) -> StoredAdapter:
        """As the store holds it. While the store replaces a folder there is none for a moment, which is waited for."""
        try:
            return self._store.get(name)
        except AdapterNotFound:
            time.sleep(_MOMENT_S)
            return self._store.get(name)

    def _install(self, stored: StoredAdapter, pinned: set[str]) -> Resident:
        adapter = self._read(stored)
        opened = open_task(adapter.card, adapter.head)
        opened.head.to(self._backbone.device)
        slot = self._place(adapter, pinned)
        try:
            deviation = self._test.try_adapter(slot, adapter)
        except AdapterError:
            self.bank.remove(slot)
            raise
        resident = Resident(stored.name, adapter.digest, slot, first_block(adapter.lora), opened, deviation)
        self._residents.put(adapter.digest, resident)
        tried = _Tried(resident, adapter)
        self._memory.put(adapter.digest, tried, tried.size_bytes)
        return resident

    def _read(self, stored: StoredAdapter) -> Adapter:
        """Its files, all of one version: one that is replaced while it is read is read again."""
        for _ in range(3):
            parsed = self._loader.take(stored.digest) or parse_adapter(stored.folder)
            if parsed.digest == stored.digest:
                return bind_adapter(parsed, self._backbone)
            stored = self._store.get(stored.name)
        raise AdapterRefused(f"The adapter {stored.name!r} changes while it is read. Load it once it is whole.", param="model")

    def _place(self, adapter: Adapter, pinned: set[str]) -> int:
        """Into a slot; what is asked for least makes room."""
        size_bytes = self.bank.bytes_of(adapter.lora)
        if size_bytes > self.bank.capacity_bytes:
            raise AdapterRefused(
                f"The adapter {adapter.card.name!r} takes {size_bytes >> 10} KiB, more than the "
                f"{self.bank.capacity_bytes >> 10} KiB there are for all. Start the server with more --adapter-memory.",
                param="model",
            )
        while not self.bank.has_room(size_bytes):
            gone = self._residents.evict(lambda digest: digest not in pinned)
            if gone is None:
                raise Overloaded("All memory for adapters is in use; try again in a moment.", retry_after_s=_PATIENCE_S)
            self._drop(gone)
        self.installs += 1
        return self.bank.install(adapter.lora)

    def _drop(self, resident: Resident | None) -> None:
        if resident is not None:
            self.bank.remove(resident.slot)
