"""Texts: the embedding of every text a batch asks for. What its tenant has asked before is at hand; the rest is one forward
of the text tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from serving.cache import LruCache
from serving.messages import Request

if TYPE_CHECKING:
    from foundation.backbone import Backbone


class Texts:
    """capacity: how many embeddings are kept, of all tenants together."""

    def __init__(self, backbone: Backbone, capacity: int) -> None:
        self._backbone = backbone
        self._held: LruCache[tuple[str, str], Tensor] = LruCache(capacity)  # by tenant and text

    def read(self, wanted: Sequence[tuple[Request, str]]) -> dict[str, Tensor]:
        """Each distinct text's embedding (E,), from the cache where its tenant has sent it before."""
        known: dict[str, Tensor] = {}
        missing: dict[str, None] = {}
        for request, text in wanted:
            held = self._held.get((request.tenant, text))
            if held is None:
                missing[text] = None
            else:
                known[text] = held
        if missing:
            known |= dict(zip(missing, self._backbone.encode_text(list(missing)).float(), strict=True))
        for request, text in wanted:
            if request.stores and (request.tenant, text) not in self._held:
                self._held.put((request.tenant, text), known[text].clone())
        return known

    def forget(self, tenant: str) -> None:
        """Drop everything the tenant sent."""
        while self._held.evict(lambda key: key[0] == tenant) is not None:
            pass
