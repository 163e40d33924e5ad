"""Withdrawals: requests whose callers have left while the engine still has them, and what the trunk did for whom.

    reading thread --add(id)--> [ids] <--in-- the loop (queue, batch), lanes (between the blocks of a forward)
                                rows by where, rows by whom --tally, with each beat--> front, metrics

The reading thread marks a request at once, also while the loop's thread is busy with a batch; the loop takes the mark away
when the request has left the engine. Adding, looking and taking away are single operations on a set, so no lock is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Where = Literal["decode", "loading", "queue", "batch", "answer"]
"""At a decoder or waiting for one; waiting for an adapter that is read; in the queue; in a batch that left it out before its
forward was over; in one whose forward was."""
WHERE: tuple[Where, ...] = ("decode", "loading", "queue", "batch", "answer")
WHOM = ("someone", "nobody")
Tally = Mapping[str, Mapping[str, float]]


class Withdrawals:
    """Rows are films of the tower's own size; of a forward that was left half-way, the part that was done."""

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self._where: dict[str, float] = {}
        self._whom: dict[str, float] = {}

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, request_id: int) -> None:
        self._ids.add(request_id)

    def discard(self, request_id: int) -> None:
        self._ids.discard(request_id)

    def note(self, where: Where, rows: float) -> None:
        """A withdrawn request of so many rows has left. By the loop's thread alone, as all below."""
        self._where[where] = self._where.get(where, 0.0) + rows

    def note_forward(self, rows: float, for_nobody: float) -> None:
        """So many rows went through the trunk, some of them for nobody who still waits."""
        for whom, some in zip(WHOM, (rows - for_nobody, for_nobody), strict=True):
            self._whom[whom] = self._whom.get(whom, 0.0) + some

    def tally(self) -> Tally:
        """What was noted since the last time."""
        told = {"withdrawn": self._where, "forwarded": self._whom}
        self._where, self._whom = {}, {}
        return told
