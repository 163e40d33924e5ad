"""Cost: what a request takes of the device, in rows: films of the tower's own size through the trunk. Pure.

    one look at a film                        1
    the same, enlarged to `size`              (size / side) squared: its patches over those of the tower's own size
    texts                                     1 for each TEXTS_PER_ROW of them

A film is looked at once as it is, for the gate, once through each adapter, and by the base at every further size that an
adapter's head reads (`adapters/tasks/classification.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from serving.messages import Request

TEXTS_PER_ROW = 16  # so many short texts cost about as much as one film
CHAT_ROWS = 2  # the film through the base and the findings adapter
ReadsAt = Callable[[str], Sequence[int]]  # the further sizes that an adapter's head reads


def row_weight(size: int, side: int) -> float:
    """A film at `size` over one at the tower's own `side`; size 0 is as it is."""
    return (size / side) ** 2 if size else 1.0


def rows_of(request: Request) -> float:
    """What a request costs: as it was weighed, or as if no head read films at further sizes."""
    return request.rows or base_rows(request)


def base_rows(request: Request) -> float:
    if request.operation == "chat":
        return CHAT_ROWS
    if request.operation == "embed_text":
        return max(1, math.ceil(len(request.texts) / TEXTS_PER_ROW))
    ways = 1 + len(request.adapters)  # as it is, for the gate, and through each adapter
    return ways * max(1, len(request.films))


def weighed(request: Request, reads_at: ReadsAt, side: int, findings: str = "") -> float:
    """What it costs with all sizes that its adapters' heads read. findings: the adapter that chats are answered from."""
    asked = request.adapters if request.operation != "chat" else frozenset([findings]) if findings else frozenset()
    further = {size for name in asked for size in reads_at(name)}  # looked at once, whoever reads it
    return base_rows(request) + sum(row_weight(size, side) for size in further) * len(request.films)
