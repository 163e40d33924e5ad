"""Cost: what a request takes of the device, in rows: films of the tower's own size through the trunk. Pure.

    one look at a film                        1
    the same, enlarged to `size`              (size / side) squared: its patches over those of the tower's own size;
                                              mirrored, as much again
    texts                                     1 for each TEXTS_PER_ROW of them

A film is looked at once as it is, for the gate, once through each adapter, and in every further look that an
adapter's head takes (`adapters/tasks/classification.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from foundation.look import Look
from serving.messages import Request

TEXTS_PER_ROW = 16  # so many short texts cost about as much as one film
CHAT_ROWS = 2  # the film through the base and the findings adapter
LooksOf = Callable[[str], Sequence[Look]]  # the further looks that an adapter's head takes


def rows_of(request: Request) -> float:
    """What a request costs: as it was weighed, or as if no head looked at films further."""
    return request.rows or base_rows(request)


def base_rows(request: Request) -> float:
    if request.operation == "chat":
        return CHAT_ROWS
    if request.operation == "embed_text":
        return max(1, math.ceil(len(request.texts) / TEXTS_PER_ROW))
    ways = 1 + len(request.adapters)  # as it is, for the gate, and through each adapter
    return ways * max(1, len(request.films))


def weighed(request: Request, looks_of: LooksOf, side: int, findings: str = "") -> float:
    """What it costs with all looks that its adapters' heads take. findings: the adapter that chats are answered from."""
    asked = request.adapters if request.operation != "chat" else frozenset([findings]) if findings else frozenset()
    further = {look for name in asked for look in looks_of(name)}  # taken once, whoever reads it
    return base_rows(request) + sum(look.rows(side) for look in further) * len(request.films)
