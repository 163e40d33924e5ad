"""Fair shares between flows: whose next request goes next. Pure.

A flow is one tenant's requests through one adapter (none being one, too). Start-time fair queueing (Goyal, Vin and Cheng,
1996): a flow's next request starts at max(V, F) in virtual time, where F is where its last one ended and V where the last
one that went anywhere started; its cost moves F on. The smallest start goes first, so a flow that floods waits for its own
requests, and one that comes after a pause is neither behind nor ahead. A tenant with several flows pays their number for
each row, so that its share stays one.

NOTE: a stream of ever new flows could hold V where it is; therefore a flow that has not been served for `patience_s` although
it waits goes before all others, the one unserved for longest first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from serving.messages import Request

Flow = tuple[str, str]
"""Tenant and adapter."""


def flow_of(request: Request) -> Flow:
    return request.tenant, request.adapter or ""


@dataclass(frozen=True)
class Shares:
    """virtual: V; ends: F of each flow that is ahead of V; served: when each flow last was, on the caller's clock."""

    virtual: float = 0.0
    ends: Mapping[Flow, float] = field(default_factory=dict)
    served: Mapping[Flow, float] = field(default_factory=dict)

    def start(self, flow: Flow) -> float:
        """Where the flow's next request begins in virtual time."""
        return max(self.virtual, self.ends.get(flow, 0.0))

    def after(self, flow: Flow, rows: float, waiting: Collection[Flow], now: float) -> Shares:
        """Once a request of `rows` has gone. waiting: the flows that have work; of others only debts are remembered."""
        siblings = len({one for one in waiting if one[0] == flow[0]} | {flow})
        start = self.start(flow)
        ends = {one: end for one, end in self.ends.items() if end > start} | {flow: start + rows * siblings}
        served = {one: at for one, at in self.served.items() if one in waiting} | {flow: now}
        return Shares(start, ends, served)


class Queues:
    """What waits, by flow, each in the order it was given (the most urgent first); handed out one by one."""

    def __init__(self, ranked: Sequence[Request], now: float, patience_s: float) -> None:
        self._queues: dict[Flow, list[Request]] = {}
        for request in reversed(ranked):
            self._queues.setdefault(flow_of(request), []).append(request)
        self._now, self._patience_s = now, patience_s
        self._rank = {request.id: number for number, request in enumerate(ranked)}
        self.flows = frozenset(self._queues)

    def next(self, shares: Shares) -> Request | None:
        """The next of the flow whose turn it is, taken out; None when all have been."""
        flows = [flow for flow, queue in self._queues.items() if queue]
        if not flows:
            return None
        return self._queues[min(flows, key=lambda flow: self._turn(flow, shares))].pop()

    def _turn(self, flow: Flow, shares: Shares) -> tuple[bool, float, int]:
        """Smaller goes first."""
        head = self._queues[flow][-1]
        oldest = min(request.arrival for request in self._queues[flow])
        unserved_since = max(oldest, shares.served.get(flow, oldest))
        if self._now - unserved_since > self._patience_s:
            return False, unserved_since, self._rank[head.id]
        return True, shares.start(flow), self._rank[head.id]
