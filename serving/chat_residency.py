"""Which chat adapters are on the decoder, under which slot, by content digest; the twin of `residency.py` for the towers.

A chat holds its adapter for as long as it is written, many turns of the engine, so what the lane still needs is never
evicted; where all memory is taken by chats under way, a further adapter has to wait. An adapter whose new files are refused
goes on answering as it was, under its own digest, while it is here.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.bank import DEFAULT_BYTES, AdapterBank
from adapters.files import Adapter, parse_adapter
from adapters.store import AdapterStore, StoredAdapter
from adapters.tasks.chat import bind_chat_adapter
from foundation.errors import AdapterError, AdapterRefused, Overloaded
from serving.adapter_loader import AdapterLoader
from serving.frequent_cache import FrequentCache

if TYPE_CHECKING:
    from foundation.backbone import Backbone
    from foundation.decoder import Decoder


_PATIENCE_S = 1.0


@dataclass(frozen=True)
class ChatResident:
    """A chat adapter in memory: its slot in the decoder's bank, and the digest of the files it came from."""

    name: str
    digest: str
    slot: int


class ChatResidency:
    """Owns the bank of one decoder. capacity_bytes: of its adapters."""

    def __init__(
        self,
        backbone: Backbone,
        decoder: Decoder,
        store: AdapterStore,
        capacity_bytes: int = DEFAULT_BYTES,
        loader: AdapterLoader | None = None,
    ) -> None:
        self.bank = AdapterBank.over(decoder.model, capacity_bytes)
        self._backbone = backbone
        self._decoder = decoder
        self._store = store
        self._residents: FrequentCache[str, ChatResident] = FrequentCache()
        self._loader = loader or AdapterLoader()

    def absent(self, name: str) -> StoredAdapter | None:
        """The adapter in the store, if it must be read before it is taken; None also where `take` will say what is wrong."""
        try:
            stored = self._store.get(name)
        except AdapterError:
            return None
        return None if stored.digest in self._residents or self._loader.has(stored.digest) else stored

    def take(self, name: str, in_use: Set[str] = frozenset(), *, falls_back: bool = True) -> ChatResident:
        """The adapter, resident. in_use: digests that must stay. Raises Overloaded, AdapterNotFound or AdapterRefused.

        falls_back: to the version before, where the store's is refused.
        """
        try:
            stored = self._store.get(name)
            return self._residents.get(stored.digest) or self._install(stored, in_use)
        except AdapterRefused:
            digests = [resident.digest for resident in self._residents.values() if resident.name == name]
            before = self._residents.get(digests[-1]) if digests and falls_back else None
            if before is None:
                raise
            return before

    def _install(self, stored: StoredAdapter, in_use: Set[str]) -> ChatResident:
        parsed = self._loader.take(stored.digest) or parse_adapter(stored.folder)
        adapter = bind_chat_adapter(parsed, self._backbone, self._decoder)
        self._make_room(adapter, in_use)
        resident = ChatResident(stored.name, adapter.digest, self.bank.install(adapter.lora))
        self._residents.put(adapter.digest, resident)
        return resident

    def _make_room(self, adapter: Adapter, in_use: Set[str]) -> None:
        size_bytes = self.bank.bytes_of(adapter.lora)
        if size_bytes > self.bank.capacity_bytes:
            raise AdapterRefused(
                f"The adapter {adapter.card.name!r} takes more than the {self.bank.capacity_bytes >> 10} KiB there are for "
                "all chat adapters. Start the server with more --adapter-memory.",
                param="model",
            )
        while not self.bank.has_room(size_bytes):
            gone = self._residents.evict(lambda digest: digest not in in_use)
            if gone is None:
                raise Overloaded("All places for chat adapters are in use; try again in a moment.", retry_after_s=_PATIENCE_S)
            self.bank.remove(gone.slot)
