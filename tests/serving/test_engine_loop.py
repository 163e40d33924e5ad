"""The engine's loop over an engine that is not there: both lanes, withdrawal, deadlines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serving.engine_loop import EngineLoop
from serving.messages import Batch, Outcome, Request
from serving.scheduler import Budget, Scheduler
from serving.transport import request_to_plain


@dataclass
class Records:
    """Answers at once; a chat takes two turns."""

    batches: list[list[int]] = field(default_factory=list)
    chats: dict[int, int] = field(default_factory=dict)
    news: list[bool] = field(default_factory=list)

    @property
    def generating(self) -> int:
        return len(self.chats)

    def run(self, batch: Batch) -> list[Outcome]:
        self.batches.append([request.id for request in batch.requests])
        self.chats |= {request.id: 2 for request in batch.requests if request.operation == "chat"}
        return [Outcome(request.id, {}) for request in batch.requests if request.operation != "chat"]

    def generate(self, has_news: Callable[[], bool]) -> list[Outcome]:
        self.news.append(has_news())
        self.chats = {number: left - 1 for number, left in self.chats.items()}
        over = [number for number, left in self.chats.items() if left == 0]
        for number in over:
            del self.chats[number]
        return [Outcome(number, {}) for number in over]

    def cancel(self, request_id: int) -> bool:
        return self.chats.pop(request_id, None) is not None


def drive(*messages: dict[str, Any], now: float = 1.0) -> tuple[Records, list[dict[str, Any]]]:
    engine, sent = Records(), list[Any]()
    loop = EngineLoop(engine, Scheduler(Budget(rows=3)), sent.append, clock=lambda: now)
    for message in messages:
        loop.inbox.put(message)
    while loop.step():
        pass
    return engine, [message["outcome"] for message in sent if message["kind"] == "outcome"]


def asks(number: int, operation: Any = "embed_image", **rest: Any) -> dict[str, Any]:
    return {"kind": "request", "request": request_to_plain(Request(number, operation, **rest))}


def test_what_waits_goes_together_and_everyone_is_answered() -> None:
    engine, outcomes = drive(asks(1), asks(2), asks(3, "chat"), asks(4))
    assert engine.batches[0] == [1, 2, 4]
    assert sorted(outcome["request_id"] for outcome in outcomes) == [1, 2, 3, 4]


def test_chats_are_told_of_news_only_while_nothing_waits() -> None:
    engine = Records(chats={9: 9})
    loop = EngineLoop(engine, Scheduler(Budget(rows=1)), lambda message: None, clock=lambda: 1.0)
    generate = engine.generate

    def meanwhile(has_news: Callable[[], bool]) -> list[Outcome]:
        """A message arrives while chats have their turn."""
        loop.inbox.put(asks(len(engine.news) + 1))
        return generate(has_news)

    engine.generate = meanwhile  # type: ignore[method-assign]
    loop.step()  # nothing waited: there is news
    loop.inbox.put(asks(8))
    loop.step()  # one of two goes to the encoder
    loop.step()  # the other still waits: none
    assert engine.news == [True, False]


def test_a_withdrawn_request_does_not_run() -> None:
    engine, outcomes = drive(asks(1), asks(2), {"kind": "cancel", "id": 1})
    assert engine.batches == [[2]]
    assert [outcome["request_id"] for outcome in outcomes] == [2]


def test_an_expired_request_is_told_and_does_not_run() -> None:
    engine, (outcome,) = drive(asks(1, deadline=0.5))
    assert engine.batches == []
    assert outcome["error_code"] == "deadline_exceeded"
