"""Doorstep: where a request waits while its adapters are read from disk, so that the queue behind it does not.

    request --admit--> its adapters are at hand: into the queue
                       else: held; the loader reads; `arrived`, then `release` hands it on, one adapter's askers a step

One a step, because an adapter that is new is tried on a test film before it answers, and that is all the time of others
it may take at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adapters.store import StoredAdapter
from serving.adapter_loader import AdapterLoader, OnRead
from serving.messages import Request

Absent = Callable[[Request], Sequence[StoredAdapter]]


class Doorstep:
    """absent: the adapters of a request that must be read before it can be answered."""

    def __init__(self, loader: AdapterLoader, absent: Absent) -> None:
        self._loader = loader
        self._absent = absent
        self._held: dict[int, tuple[Request, set[str]]] = {}  # and the digests it waits for
        self._arrived: list[str] = []

    def __len__(self) -> int:
        return len(self._held)

    @property
    def may_release(self) -> bool:
        return bool(self._arrived)

    def tell(self, on_read: OnRead) -> None:
        """Whom the loader is to tell, from its thread, that an adapter has been read; who then calls `arrived`."""
        self._loader.on_read = on_read

    def admit(self, request: Request) -> bool:
        """Whether it may go into the queue now; if not, it is held here."""
        absent = self._absent(request)
        if not absent:
            return True
        self._held[request.id] = (request, {stored.digest for stored in absent})
        for stored in absent:
            self._loader.want(stored)
        return False

    def arrived(self, digest: str) -> None:
        """An adapter has been read, or could not be."""
        self._arrived.append(digest)

    def release(self) -> list[Request]:
        """Those who wait for nothing any more, now that one adapter more is here."""
        if not self._arrived:
            return []
        digest = self._arrived.pop(0)
        for _, missing in self._held.values():
            missing.discard(digest)
        free = [request for request, missing in self._held.values() if not missing]
        for request in free:
            del self._held[request.id]
        return free

    def cancel(self, request_id: int) -> Request | None:
        """Withdraw a request; None if it is not held here (any more)."""
        return self._held.pop(request_id, (None, set[str]()))[0]
