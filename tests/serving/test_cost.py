"""What requests cost, in films of the tower's own size; and the engine weighs them by what its adapters' cards say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import SIZE, noise_film, write_checkpoint, write_findings

from foundation.checkpoint import open_checkpoint
from foundation.look import Look, further_looks
from serving.config import EngineConfig
from serving.cost import rows_of, weighed
from serving.engine import Engine
from serving.engine_loop import EngineLoop
from serving.messages import Batch, Outcome, Request
from serving.scheduler import Budget, Scheduler
from serving.transport import request_to_plain

LOOKS = {"three": (Look(160), Look(192)), "two": (Look(192),), "both": further_looks((192,), True)}


def looks_of(name: str) -> tuple[Look, ...]:
    return LOOKS.get(name, ())


def weight(request: Request, findings: str = "three") -> float:
    return weighed(request, looks_of, 128, findings)


def test_an_enlarged_film_costs_what_its_patches_do() -> None:
    assert Look().rows(128) == Look(128).rows(128) == 1.0
    assert Look(256).rows(128) == 4.0
    assert Look(192, True).rows(128) == 2.25


def test_further_looks_count_once_whoever_takes_them() -> None:
    film = noise_film(1)
    plain = Request(1, "classify", film=film, adapter="plain")
    assert weight(plain) == rows_of(plain) == 2
    three = Request(2, "classify", film=film, adapter="three")
    assert weight(three) == pytest.approx(2 + 1.5625 + 2.25)
    mirrored = Request(2, "classify", film=film, adapter="both")
    assert weight(mirrored) == pytest.approx(2 + 2.25 + 1 + 2.25)
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


def test_the_loop_weighs_what_comes() -> None:
    ran: list[list[int]] = []

    class Notes:
        generating = 0

        def run(self, batch: Batch) -> list[Outcome]:
            ran.append([request.id for request in batch.requests])
            return []

    scheduler = Scheduler(Budget(rows=6))
    loop = EngineLoop(Notes(), scheduler, lambda message: None, clock=lambda: 0.0, weigh=lambda request: 5.0)  # type: ignore[arg-type]
    for number in (1, 2):
        loop.deliver({"kind": "request", "request": request_to_plain(Request(number, "embed_image"))})
    while loop.step():
        pass
    assert ran == [[1], [2]]


def test_the_engine_knows_from_a_card_which_looks_are_taken(tmp_path: Path) -> None:
    backbone = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", with_decoder=False)).backbone
    write_findings(tmp_path / "adapters", backbone, "cxr-findings")
    card = tmp_path / "adapters" / "cxr-findings" / "card.json"
    told = json.loads(card.read_text())
    card.write_text(json.dumps({**told, "head": {**told["head"], "sizes": [SIZE * 3 // 2], "is_mirrored": True}}))
    engine = Engine.open(EngineConfig(checkpoint=str(tmp_path / "checkpoint"), adapters_dir=str(tmp_path / "adapters")))
    film = noise_film(1)
    assert engine.weigh(Request(1, "classify", film=film, adapter="cxr-findings")) == pytest.approx(2 + 2.25 + 1 + 2.25)
    assert engine.weigh(Request(2, "classify", film=film, adapter="unknown")) == 2
    assert engine.weigh(Request(3, "embed_image", film=film)) == 1
