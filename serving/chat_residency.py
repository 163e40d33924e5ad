"""Which chat adapters are on the decoder, under which slot, by content digest; the twin of `residency.py` for the towers.

A chat holds its adapter for as long as it is written, many turns of the engine, so what the lane still needs is never
evicted; where every place is taken by a chat under way, a further adapter has to wait.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.bank import AdapterBank
from adapters.store import AdapterStore
from adapters.tasks.chat import open_chat_adapter
from foundation.errors import Overloaded
from serving.cache import LruCache

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
    """Owns the bank of one decoder."""

    def __init__(self, backbone: Backbone, decoder: Decoder, store: AdapterStore, capacity: int) -> None:
        self.bank = AdapterBank.over(decoder.model)
        self._backbone = backbone
        self._decoder = decoder
        self._store = store
        self._residents: LruCache[str, ChatResident] = LruCache(capacity + 1)
        self._capacity = capacity

    def take(self, name: str, in_use: Set[str] = frozenset()) -> ChatResident:
        """The adapter, resident. in_use: digests that must stay. Raises Overloaded, AdapterNotFound or AdapterRefused."""
        stored = self._store.get(name)
        resident = self._residents.get(stored.digest)
        if resident is None:
            adapter = open_chat_adapter(stored.folder, self._backbone, self._decoder)
            self._make_room(in_use)
            resident = ChatResident(stored.name, stored.digest, self.bank.install(adapter.lora))
            self._residents.put(stored.digest, resident)
        return resident

    def _make_room(self, in_use: Set[str]) -> None:
        while len(self._residents) >= self._capacity:
            gone = self._residents.evict(lambda digest: digest not in in_use)
            if gone is None:
                places = f"All {self._capacity} places for chat adapters are in use; try again in a moment."
                raise Overloaded(places, retry_after_s=_PATIENCE_S)
            self.bank.remove(gone.slot)
