"""Ledger: what all front processes of one server count together, in memory that they share.

    row per front    items and bytes in flight, written by that front alone, wiped by the parent when the front is lost
    slot per key     when the key's bucket is full again (rates.py)

A record lock of the kernel guards each half for the length of one look and one change; it is free again when its holder
dies. An anonymous file, sealed as an arena is.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from serving.arena import seal
from serving.config import MOST_WORKERS
from serving.limits import Budget
from serving.rates import RateLimiter

KINDS = ("items", "bytes")
_ROW = struct.Struct(f"<{len(KINDS)}q")
_SLOT = struct.Struct("<16sd")  # digest of the key's id; seconds on the monotonic clock, which is one for all processes
_SLOTS, _PROBES = 4096, 16
_RATES_AT = MOST_WORKERS * _ROW.size
_SIZE = _RATES_AT + _SLOTS * _SLOT.size


class Ledger:
    """number: of the front whose row may be written here, from 1; 0 for the parent."""

    def __init__(self, handle: int, number: int = 0) -> None:
        self.handle = handle
        self.number = number
        self._memory = mmap.mmap(handle, 0)

    @classmethod
    def create(cls) -> Ledger:
        handle = os.memfd_create("vesalius-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(handle, _SIZE)
        seal(handle)
        return cls(handle)

    def budget(self, capacity: int, what: str, kind: str) -> Budget:
        return _SharedBudget(capacity, what, self, KINDS.index(kind))

    def rates(self) -> RateLimiter:
        return _SharedRates(self)

    @contextmanager
    def locked(self, half: int) -> Iterator[None]:
        """NOTE: a record lock keeps other processes out, not other threads of this one; fronts have one thread."""
        fcntl.lockf(self.handle, fcntl.LOCK_EX, 1, half)
        try:
            yield
        finally:
            fcntl.lockf(self.handle, fcntl.LOCK_UN, 1, half)

    def in_use(self, place: int) -> int:
        """By all fronts together. place: of the kind, in KINDS."""
        return sum(row[place] for row in _ROW.iter_unpack(self._memory[:_RATES_AT]))

    def add(self, place: int, amount: int) -> None:
        """To what this front uses."""
        row = list(_ROW.unpack_from(self._memory, self._row_at(self.number)))
        row[place] += amount
        _ROW.pack_into(self._memory, self._row_at(self.number), *row)

    def wipe(self, number: int) -> None:
        """A front is gone: it uses nothing."""
        with self.locked(0):
            _ROW.pack_into(self._memory, self._row_at(number), *[0] * len(KINDS))

    def full_at(self, key_id: str) -> float | None:
        """None for a key whose bucket is full, or was never touched."""
        digest = _digest(key_id)
        for at in _probes(digest):
            held, full_at = _SLOT.unpack_from(self._memory, at)
            if held == digest:
                return float(full_at)
        return None

    def note_full_at(self, key_id: str, full_at: float) -> None:
        """Over the key's own slot, or else the one whose bucket was or will be full again first."""
        digest = _digest(key_id)
        slots = [(*_SLOT.unpack_from(self._memory, at), at) for at in _probes(digest)]
        own = [at for held, _, at in slots if held == digest]
        _SLOT.pack_into(self._memory, own[0] if own else min(slots, key=lambda slot: slot[1])[2], digest, full_at)

    def _row_at(self, number: int) -> int:
        assert 1 <= number <= MOST_WORKERS
        return (number - 1) * _ROW.size

    def close(self) -> None:
        self._memory.close()
        os.close(self.handle)


def _digest(key_id: str) -> bytes:
    return hashlib.blake2b(key_id.encode(), digest_size=16).digest()


def _probes(digest: bytes) -> Iterator[int]:
    """Where the slot may lie."""
    first = int.from_bytes(digest[:4], "little")
    for step in range(_PROBES):
        yield _RATES_AT + (first + step) % _SLOTS * _SLOT.size


class _SharedBudget(Budget):
    """A Budget of the whole server; `in_use` remains what this front holds of it."""

    def __init__(self, capacity: int, what: str, ledger: Ledger, place: int) -> None:
        super().__init__(capacity, what)
        self._ledger, self._place = ledger, place

    def _claim(self, amount: int) -> None:
        with self._ledger.locked(0):
            self._check(self._ledger.in_use(self._place), amount)
            self._ledger.add(self._place, amount)
        self.in_use += amount

    def _give_back(self, amount: int) -> None:
        self.in_use -= amount
        with self._ledger.locked(0):
            self._ledger.add(self._place, -amount)


class _SharedRates(RateLimiter):
    """Rates that hold for all fronts together."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def admit(self, key_id: str, per_minute: int) -> None:
        if per_minute:
            with self._ledger.locked(1):
                super().admit(key_id, per_minute)

    def _full_again(self, key_id: str, now: float) -> float:
        full_at = self._ledger.full_at(key_id)
        return now if full_at is None else full_at

    def _note(self, key_id: str, full_at: float) -> None:
        self._ledger.note_full_at(key_id, full_at)
