"""What requests cost, in films of the tower's own size; and the engine weighs them by what its adapters' cards say."""

from __future__ import annotations

import pytest
from tiny import noise_film

from serving.cost import row_weight, rows_of, weighed
from serving.messages import Request
from serving.scheduler import Budget, Scheduler

SIZES = {"three": (160, 192), "two": (192,)}


def reads_at(name: str) -> tuple[int, ...]:
    return SIZES.get(name, ())


def weight(request: Request, findings: str = "three") -> float:
    return weighed(request, reads_at, 128, findings)


def test_an_enlarged_film_costs_what_its_patches_do() -> None:
    assert row_weight(0, 128) == row_weight(128, 128) == 1.0
    assert row_weight(256, 128) == 4.0
    assert row_weight(192, 128) == 2.25


def test_further_sizes_count_once_whoever_reads_them() -> None:
    film = noise_film(1)
    plain = Request(1, "classify", film=film, adapter="plain")
    assert weight(plain) == rows_of(plain) == 2
    three = Request(2, "classify", film=film, adapter="three")
    assert weight(three) == pytest.approx(2 + 1.5625 + 2.25)
    tasks = [{"operation": "classify", "adapter": name} for name in ("three", "two", "plain")]
    both = Request(3, "analyze", film=film, options={"tasks": tasks})
    assert weight(both) == pytest.approx(4 + 1.5625 + 2.25)


def test_a_chat_costs_what_its_findings_do_and_words_alone_nothing_more() -> None:
    film = noise_film(1)
    assert weight(Request(1, "chat", film=film, adapter="two")) == pytest.approx(2 + 1.5625 + 2.25)
    assert weight(Request(1, "chat")) == 2
    assert weight(Request(1, "chat", film=film), findings="") == 2
    assert weight(Request(1, "embed_text", texts=("x",) * 33)) == 3


def test_batches_are_bounded_by_work_not_by_films() -> None:
    scheduler = Scheduler(Budget(rows=8))
    scheduler.add(Request(number, "classify", adapter="three", rows=5.8) for number in range(3))
    scheduler.add(Request(number, "embed_image", rows=1.0) for number in range(3, 6))
    assert scheduler.rows == pytest.approx(3 * 5.8 + 3)
    batches = []
    while (batch := scheduler.next(0.0).batch) is not None:
        batches.append([request.id for request in batch.requests])
    assert all(sum(number < 3 for number in batch) == 1 for batch in batches)
    assert len(batches) == 3
    assert sorted(number for batch in batches for number in batch) == list(range(6))
