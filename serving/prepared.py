"""Prepared: a batch on its way through an engine, from planning to its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from serving.chat_work import ChatWork
from serving.looks import Sighting
from serving.messages import Batch, Outcome, Request
from serving.works import Work


@dataclass(eq=False)
class Prepared:
    """A planned batch on its way. outcomes: of requests that failed at planning; error: what broke all of it.

    held: digests of the adapters of batches beside it, as it was planned; pinned: and of its own, which stay resident until
    it is finished.
    """

    batch: Batch
    started: float
    held: frozenset[str]
    pinned: set[str]
    outcomes: list[Outcome] = field(default_factory=list)
    planned: list[tuple[Request, Work | ChatWork]] = field(default_factory=list)
    sighting: Sighting | None = None
    texts: Mapping[str, Tensor] = field(default_factory=dict)
    crowded: list[Request] = field(default_factory=list)  # their adapters find no room beside those of their neighbours
    error: Exception | None = None
    seconds: float = 0.0  # of its forward, where that ran in a lane
    is_computed: bool = False  # its adapters may leave the bank from here on
    left: set[int] = field(default_factory=set)  # requests that were withdrawn, and are counted

    @property
    def rows(self) -> float:
        """What its forward costs: films of the tower's own size, once for each adapter; what is at hand costs none.

        Once it is computed, what it did cost, without what was left out.
        """
        if self.sighting is None:
            return 0.0
        return self.sighting.rows_done[0] if self.is_computed else self.sighting.rows
