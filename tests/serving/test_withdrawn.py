"""Nothing is done for callers who have left: out of the queue, and out of a forward between two blocks; and it is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import noise_film, write_checkpoint, write_findings

from foundation.checkpoint import open_checkpoint
from foundation.preprocess import InputContract
from foundation.towers.tower import TrunkState
from serving.config import EngineConfig
from serving.decode_pool import DecodePool
from serving.engine import Engine
from serving.engine_loop import EngineLoop
from serving.gateway import Readiness
from serving.messages import Batch, Outcome, RawFilm, Request
from serving.metrics import Metrics
from serving.scheduler import Budget, Scheduler
from serving.transport import request_to_plain
from serving.works import Seen
from serving.works.embed import EmbedImage


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("withdrawn")
    backbone = open_checkpoint(write_checkpoint(place / "checkpoint", with_decoder=False)).backbone
    write_findings(place / "adapters", backbone, "cxr-findings")
    return place


@pytest.fixture
def engine(place: Path) -> Engine:
    folders = {"checkpoint": str(place / "checkpoint"), "adapters_dir": str(place / "adapters")}
    return Engine.open(EngineConfig(**folders, cached_film_bytes=0, threads=1))


def embeds(*numbers: int) -> list[Request]:
    return [Request(number, "embed_image", film=noise_film(number)) for number in numbers]


def leaves_before(engine: Engine, block: int, *numbers: int) -> None:
    """These callers leave while the block before it runs."""
    tower = engine.backbone.image_tower
    own = tower.run

    def run(state: TrunkState, start: int = 0, stop: int | None = None) -> TrunkState:
        for number in numbers if start == block - 1 else ():
            engine.withdrawn.add(number)
        return own(state, start, stop)

    tower.run = run  # type: ignore[method-assign]


def numbers_of(outcome: Outcome) -> list[float]:
    assert outcome.value is not None, outcome
    return outcome.value.get("probabilities") or outcome.value["embeddings"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("left_before", [0, 1, 4])
def test_who_leaves_is_left_out_from_the_next_block_on(engine: Engine, left_before: int) -> None:
    asked = [*embeds(1, 2), Request(3, "classify", film=noise_film(3), adapter="cxr-findings"), *embeds(4)]
    alone = {one.id: numbers_of(engine.run(Batch((one,)))[0]) for one in asked}
    depth, before = engine.looks.trunk.depth, engine.looks.trunk.block_rows
    engine.withdrawn.tally()
    prepared = engine.prepare(Batch(tuple(asked)))
    rows = prepared.rows
    if left_before:
        leaves_before(engine, left_before, 1, 3)
    else:
        engine.withdrawn.add(1)
        engine.withdrawn.add(3)
    engine.compute(prepared)
    outcomes = {one.request_id: one for one in engine.finish(prepared)}
    assert set(outcomes) == {2, 4}
    for number, outcome in outcomes.items():
        np.testing.assert_allclose(numbers_of(outcome), alone[number], rtol=1e-3, atol=1e-5)
    gone = rows - 2
    assert engine.looks.trunk.block_rows - before == 2 * depth + gone * left_before
    tally = engine.withdrawn.tally()
    assert tally["withdrawn"] == {"batch": 3.0}  # one film, and one as it is and through an adapter
    assert tally["forwarded"] == pytest.approx({"someone": 2.0, "nobody": gone * left_before / depth})


def test_when_all_leave_nothing_goes_on_and_nobody_is_answered(engine: Engine) -> None:
    prepared = engine.prepare(Batch(tuple(embeds(1, 2))))
    leaves_before(engine, 2, 1, 2)
    before = engine.looks.trunk.block_rows
    engine.compute(prepared)
    assert engine.finish(prepared) == []
    assert engine.looks.trunk.block_rows - before == 2 * 2


def test_a_film_that_another_waits_for_is_looked_at(engine: Engine) -> None:
    film = noise_film(7)
    prepared = engine.prepare(Batch((Request(1, "embed_image", film=film), Request(2, "embed_image", film=film))))
    leaves_before(engine, 1, 1)
    engine.compute(prepared)
    assert [one.request_id for one in engine.finish(prepared)] == [2]
    tally = engine.withdrawn.tally()
    assert tally == {"withdrawn": {"answer": 1.0}, "forwarded": {"someone": 1.0, "nobody": 0.0}}


def test_who_leaves_after_the_forward_was_computed_for_nobody(engine: Engine) -> None:
    prepared = engine.prepare(Batch(tuple(embeds(1, 2))))
    engine.compute(prepared)
    engine.withdrawn.add(2)
    assert [one.request_id for one in engine.finish(prepared)] == [1]
    assert engine.withdrawn.tally() == {"withdrawn": {"answer": 1.0}, "forwarded": {"someone": 1.0, "nobody": 1.0}}


def test_who_left_before_the_batch_was_planned_is_not_planned(engine: Engine) -> None:
    engine.withdrawn.add(1)
    assert [one.request_id for one in engine.run(Batch(tuple(embeds(1, 2))))] == [2]
    assert engine.withdrawn.tally()["withdrawn"] == {"batch": 1.0}


@pytest.mark.parametrize("left_before_planning", [True, False])
def test_who_left_a_batch_that_breaks_is_counted_once_and_breaks_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, left_before_planning: bool
) -> None:
    broken = noise_film(2)
    own = EmbedImage.finish

    def finish(work: EmbedImage, seen: Seen) -> dict[str, Any]:
        if work.film is broken:
            raise ArithmeticError("this film breaks its batch when it is finished")
        return own(work, seen)

    monkeypatch.setattr(EmbedImage, "finish", finish)
    asked = [*embeds(1), Request(2, "embed_image", film=broken), *embeds(3)]
    if left_before_planning:
        engine.withdrawn.add(1)
    prepared = engine.prepare(Batch(tuple(asked)))
    engine.compute(prepared)
    engine.withdrawn.add(1)
    outcomes = {one.request_id: one.is_error for one in engine.finish(prepared)}
    assert outcomes == {2: True, 3: False}
    assert engine.withdrawn.tally()["withdrawn"] == {"batch" if left_before_planning else "answer": 1.0}


class Busy:
    """An engine that is told of a caller who leaves while it runs a batch."""

    generating = 0

    def __init__(self) -> None:
        self.loop: EngineLoop | None = None
        self.marked: list[bool] = []

    def run(self, batch: Batch) -> list[Outcome]:
        assert self.loop is not None
        self.loop.deliver({"kind": "cancel", "id": batch.requests[0].id})
        self.marked.append(batch.requests[0].id in self.loop.withdrawn)
        return [Outcome(request.id, {}) for request in batch.requests]

    def generate(self, has_news: Any) -> list[Outcome]:
        raise AssertionError

    def cancel(self, request_id: int) -> bool:
        return False

    def forget(self, tenant: str, study: str) -> None: ...


def test_leaving_is_noticed_while_a_batch_keeps_the_loop_busy_and_no_mark_stays() -> None:
    engine, sent = Busy(), list[Any]()
    engine.loop = loop = EngineLoop(engine, Scheduler(Budget(rows=2)), sent.append, clock=lambda: 0.0)
    for number in range(1, 5):
        loop.deliver({"kind": "request", "request": request_to_plain(Request(number, "embed_image"))})
    loop.deliver({"kind": "cancel", "id": 4})
    while loop.step():
        pass
    assert engine.marked == [True, True]
    assert len(loop.withdrawn) == 0
    told = [one["withdrawn"] for one in sent if one["kind"] == "beat"]
    assert told == [{"queue": 1.0}, {}]


def test_a_film_that_waits_for_a_decoder_is_counted_and_given_up() -> None:
    async def leave() -> int:
        pool = DecodePool()
        contract = InputContract(size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
        waits = asyncio.create_task(pool.decode(RawFilm(b""), contract))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        return pool.withdrawn

    assert asyncio.run(leave()) == 1


def test_metrics_follow_what_was_counted_elsewhere() -> None:
    metrics = Metrics()
    for rows in (2.0, 2.0, 5.5):
        told = metrics.render(Readiness(True, withdrawn={"queue": rows}, forwarded={"nobody": 1.0})).decode()
    assert 'vesalius_withdrawn_rows_total{where="queue"} 5.5' in told
    assert 'vesalius_forwarded_rows_total{whom="nobody"} 1.0' in told
