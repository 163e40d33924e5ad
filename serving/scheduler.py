"""What runs next: a pure policy over waiting requests and a clock. No threads, no torch, no sleep.

    encoder lane   requests that need the trunk (a chat's first step among them): one Batch a turn
    chat lane      chats that are generating: a few tokens each a turn

The engine pulls: whenever the device is free it asks `Scheduler.next`, and what waits goes, up to a budget. There
is no timer, so nothing waits at low load and batches grow by themselves at high load. While both lanes have work
they take turns.

Who goes is settled twice. Between flows (a tenant's requests through one adapter) by start-time fair queueing: each flow's
next request has a tag in virtual time, which its cost moves on, so that flows get equal shares of rows, whatever they send,
and a tenant's flows together one share (`fairness.py`). Within a flow by urgency, the earlier of a request's deadline and
its arrival plus `patience_s`, so that nobody who comes later than that goes before it. The first always goes, and behind it
whatever still fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from foundation.errors import InvalidRequest
from serving.cost import rows_of
from serving.fairness import Flow, Queues, Shares, flow_of
from serving.messages import Batch, Request


@dataclass(frozen=True)
class Budget:
    """The most one batch may hold. rows: of the requests' cost (cost.py); chats: generating at the same time."""

    rows: float = 32
    adapters: int = 8
    chats: int = 8

    def __post_init__(self) -> None:
        for name in ("rows", "adapters", "chats"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"The budget's '{name}' must be at least 1.", param=name)


@dataclass(frozen=True)
class Step:
    """What to do now: run `batch` (may be None), or let the chats generate, and tell `expired` that it is too late."""

    batch: Batch | None = None
    generates: bool = False
    expired: tuple[Request, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One look at the queue: who goes, who is too late, who stays (in order of arrival); what each flow has had then."""

    chosen: tuple[Request, ...]
    expired: tuple[Request, ...]
    waiting: tuple[Request, ...]
    shares: Shares = field(default_factory=Shares)


def urgency(request: Request, patience_s: float) -> tuple[float, int]:
    """Smaller goes first; ties go to the older request."""
    patient_until = request.arrival + patience_s
    return min(patient_until, request.deadline if request.deadline is not None else patient_until), request.id


def choose(
    waiting: Sequence[Request],
    now: float,
    budget: Budget,
    free_chats: int,
    patience_s: float = 2.0,
    in_use: frozenset[str] = frozenset(),
    shares: Shares | None = None,
) -> Choice:
    """The next batch. A request larger than the whole budget goes alone.

    shares: what each flow has had; none of them anything where it is left out.

    in_use: adapters of batches under way, which count towards the budget's; where the most urgent request does not fit
    beside them, nobody goes before it.
    """
    expired = [request for request in waiting if request.deadline is not None and request.deadline <= now]
    late = {request.id for request in expired}
    chosen: list[Request] = []
    rows, adapters = 0.0, set(in_use)
    alive = [request for request in waiting if request.id not in late]
    shares = shares or Shares()
    queues = Queues(sorted(alive, key=lambda one: urgency(one, patience_s)), now, patience_s)
    while (request := queues.next(shares)) is not None:
        wants = adapters | request.adapters
        is_chat = request.operation == "chat"
        if is_chat and free_chats < 1:
            continue
        if not chosen and in_use and len(wants) > budget.adapters:
            break
        if chosen and (rows + rows_of(request) > budget.rows or len(wants) > budget.adapters):
            continue
        chosen.append(request)
        shares = shares.after(flow_of(request), rows_of(request), queues.flows, now)
        rows, adapters, free_chats = rows + rows_of(request), wants, free_chats - is_chat
    gone = late | {request.id for request in chosen}
    return Choice(tuple(chosen), tuple(expired), tuple(one for one in waiting if one.id not in gone), shares)


class Scheduler:
    """The queue itself. Its books: every request added is later chosen, expired or withdrawn, exactly once."""

    def __init__(self, budget: Budget | None = None, patience_s: float = 2.0) -> None:
        self.budget = budget or Budget()
        self.patience_s = patience_s
        self._waiting: tuple[Request, ...] = ()
        self._ids: set[int] = set()
        self._encoded_last = False
        self._shares = Shares()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, requests: Iterable[Request]) -> None:
        fresh = tuple(requests)
        for request in fresh:
            if request.id in self._ids:
                raise InvalidRequest(f"Request {request.id} is waiting already.", param="id")
            self._ids.add(request.id)
        self._waiting += fresh

    def cancel(self, request_id: int) -> Request | None:
        """Withdraw a request; None if it does not wait here (any more)."""
        if request_id not in self._ids:
            return None
        gone = next(request for request in self._waiting if request.id == request_id)
        self._keep(tuple(request for request in self._waiting if request.id != request_id))
        return gone

    @property
    def rows(self) -> float:
        """What all that waits costs."""
        return sum(map(rows_of, self._waiting))

    def rows_before(self, request: Request) -> float:
        """What goes before a request that has just come: its own flow's more urgent work, and as much of each other flow."""
        rank = urgency(request, self.patience_s)
        own, others = 0.0, dict[Flow, float]()
        for one in self._waiting:
            if one.id == request.id:
                continue
            if flow_of(one) == flow_of(request):
                own += rows_of(one) if urgency(one, self.patience_s) < rank else 0
            else:
                others[flow_of(one)] = others.get(flow_of(one), 0.0) + rows_of(one)
        return own + sum(min(rows, own + rows_of(request)) for rows in others.values())

    def next(self, now: float, generating: int = 0, *, rows: float | None = None, in_use: frozenset[str] = frozenset()) -> Step:
        """The step to take at `now`, while `generating` chats are under way.

        rows: of the next batch, where that should be fewer than the budget's; in_use: as in `choose`.
        """
        budget = self.budget if rows is None else replace(self.budget, rows=max(1.0, min(rows, self.budget.rows)))
        choice = choose(self._waiting, now, budget, budget.chats - generating, self.patience_s, in_use, self._shares)
        chats_turn = generating > 0 and (self._encoded_last or not choice.chosen)
        if chats_turn:
            late = {request.id for request in choice.expired}
            self._keep(tuple(request for request in self._waiting if request.id not in late))
            self._encoded_last = False
            return Step(generates=True, expired=choice.expired)
        self._keep(choice.waiting)
        self._shares = choice.shares
        self._encoded_last = bool(choice.chosen)
        return Step(Batch(choice.chosen) if choice.chosen else None, expired=choice.expired)

    def _keep(self, waiting: tuple[Request, ...]) -> None:
        self._waiting = waiting
        self._ids = {request.id for request in waiting}
