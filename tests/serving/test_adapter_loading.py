"""How adapters come into memory and leave it: read beside the model, kept by bytes and by use; nobody waits for another's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import noise_film, write_checkpoint, write_task
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.card import digest_of
from adapters.files import parse_adapter
from adapters.store import AdapterStore
from foundation.checkpoint import open_checkpoint
from foundation.errors import AdapterRefused
from serving.adapter_loader import AdapterLoader
from serving.adapter_memory import AdapterMemory
from serving.config import EngineConfig
from serving.doorstep import Doorstep
from serving.engine import Engine
from serving.engine_loop import EngineLoop
from serving.frequent_cache import FrequentCache
from serving.messages import Batch, Outcome, Request
from serving.scheduler import Scheduler
from serving.self_test import SelfTest
from serving.transport import request_to_plain

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loading")
    backbone = open_checkpoint(write_checkpoint(place / "checkpoint", with_decoder=False)).backbone
    for seed, name in enumerate(NAMES):
        write_task(place / "adapters", backbone, name, "classification", first_block=3, seed=seed)
    return place


def open_engine(place: Path, places: int, **options: Any) -> Engine:
    """With room for so many adapters."""
    engine = Engine.open(
        EngineConfig(checkpoint=str(place / "checkpoint"), adapters_dir=str(place / "adapters"), cached_film_bytes=0, **options)
    )
    bank = engine._tools.residency.bank
    adapter = parse_adapter(place / "adapters" / "one")
    bank.capacity_bytes = places * bank.bytes_of(adapter.lora.weights)
    return engine


def classify(number: int, name: str) -> Request:
    return Request(number, "classify", adapter=name, film=noise_film(1))


def probabilities(outcome: Outcome) -> list[float]:
    assert outcome.value is not None, outcome.error_message
    return list(outcome.value["probabilities"])


def alone(engine: Engine, name: str) -> list[float]:
    (outcome,) = engine.run(Batch((classify(1, name),)))
    return probabilities(outcome)


# The memory


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["get", "put", "evict"]))), st.sets(st.integers(0, 8)))
def test_what_is_pinned_never_leaves(steps: list[tuple[int, str]], pinned: set[int]) -> None:
    cache: FrequentCache[int, int] = FrequentCache()
    held: set[int] = set()
    for key, step in steps:
        if step == "put":
            cache.put(key, key)
            held.add(key)
        elif step == "get":
            assert (cache.get(key) is not None) == (key in held)
        else:
            gone = cache.evict(lambda one: one not in pinned)
            assert (gone is None) == (not held - pinned)
            assert gone not in pinned
            held -= {gone}
    assert set(cache.values()) == held


def test_a_sweep_over_rare_ones_leaves_the_popular_and_old_fame_fades() -> None:
    cache: FrequentCache[str, str] = FrequentCache()
    for _ in range(10):
        cache.get("popular")
        if "popular" not in cache:
            cache.put("popular", "popular")

    def sweep(steps: int) -> None:
        for number in range(steps):
            while len(cache) >= 3:
                cache.evict(lambda _: True)
            cache.put(f"rare {number}", "rare")

    sweep(6)
    assert "popular" in cache
    sweep(60)
    assert "popular" not in cache


def test_memory_counts_bytes_and_forgets_the_longest_unused() -> None:
    memory: AdapterMemory[str] = AdapterMemory(10)
    for digest, size in (("a", 4), ("b", 4), ("huge", 11)):
        memory.put(digest, digest.upper(), size)
    assert memory.get("a") == "A"
    memory.put("c", "C", 4)
    assert ("a" in memory, "b" in memory, "c" in memory, "huge" in memory) == (True, False, True, False)
    assert memory.held_bytes == 8
    memory.forget(lambda value: value == "A")
    assert (len(memory), memory.held_bytes) == (1, 4)


def test_an_adapter_that_comes_back_from_memory_says_the_same_and_is_not_tried_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    try_adapter = SelfTest.try_adapter

    def counted(test: SelfTest, slot: int, adapter: Any) -> float:
        tried.append(adapter.card.name)
        return try_adapter(test, slot, adapter)

    monkeypatch.setattr(SelfTest, "try_adapter", counted)
    engine = open_engine(place, places=1)
    before = {name: alone(engine, name) for name in NAMES}
    assert len({tuple(one) for one in before.values()}) == 3
    assert len(engine._tools.residency.bank.slots) == 1
    for name in NAMES:
        assert alone(engine, name) == before[name]
    assert tried == list(NAMES)
    forgetful = open_engine(place, places=1, adapter_memory_bytes=0)
    for name in (*NAMES, *NAMES):
        assert alone(forgetful, name) == pytest.approx(before[name], abs=1e-6)
    assert tried == [*NAMES, *NAMES, *NAMES]


def test_a_batch_with_more_adapters_than_places_is_answered_in_parts(place: Path) -> None:
    engine = open_engine(place, places=2)
    before = {name: alone(engine, name) for name in NAMES}
    order = (*NAMES, *reversed(NAMES))
    outcomes = engine.run(Batch(tuple(classify(number, name) for number, name in enumerate(order))))
    assert sorted(outcome.request_id for outcome in outcomes) == list(range(6))
    for outcome in outcomes:
        assert probabilities(outcome) == pytest.approx(before[order[outcome.request_id]], abs=1e-5)


def test_a_place_that_another_batch_holds_is_waited_for_even_if_that_is_computed_meanwhile(place: Path) -> None:
    """A lone request is planned while another batch holds the only place, whose forward ends before that is looked at."""
    engine = open_engine(place, places=1)
    before = {name: alone(engine, name) for name in NAMES[:2]}
    first = engine.prepare(Batch((classify(1, "one"),)))
    has_room = engine.bank.has_room

    def ends_meanwhile(size_bytes: int) -> bool:
        if not first.is_computed:
            engine.compute(first)
        return has_room(size_bytes)

    engine.bank.has_room = ends_meanwhile  # type: ignore[method-assign]
    second = engine.prepare(Batch((classify(2, "two"),)))
    engine.compute(second)
    (outcome,) = engine.finish(second)
    assert outcome.error_code is None, outcome.error_message
    assert probabilities(outcome) == pytest.approx(before["two"], abs=1e-5)
    assert probabilities(engine.finish(first)[0]) == pytest.approx(before["one"], abs=1e-5)


def test_an_adapter_larger_than_all_the_memory_is_told_what_to_do(place: Path) -> None:
    engine = open_engine(place, places=1)
    engine._tools.residency.bank.capacity_bytes -= 1
    (outcome,) = engine.run(Batch((classify(1, "one"),)))
    assert outcome.error_code == "adapter_refused"
    assert "--adapter-memory" in outcome.error_message


# The reading thread


class _Arithmetic(TorchDispatchMode):
    """Notes every operation of torch that is more than another look at the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ not in ("view", "detach", "alias", "lift_fresh"):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_reading_a_folder_takes_no_arithmetic_of_torch(place: Path) -> None:
    with _Arithmetic() as arithmetic:
        parsed = parse_adapter(place / "adapters" / "one")
    assert arithmetic.seen == []
    assert parsed.digest == digest_of(place / "adapters" / "one")
    with _Arithmetic() as seen:
        torch.zeros(2) + 1
    assert seen.seen, "a watch that sees nothing proves nothing"


def test_the_loader_gives_what_it_read_or_why_it_could_not(place: Path, tmp_path: Path) -> None:
    loader, done = AdapterLoader(), threading.Semaphore(0)
    loader.on_read = lambda digest: done.release()
    store = AdapterStore(tmp_path / "store")
    store.add(place / "adapters" / "one")
    stored = store.get("one")
    loader.want(stored)
    assert done.acquire(timeout=60)
    assert loader.has(stored.digest)
    parsed = loader.take(stored.digest)
    assert parsed is not None
    assert parsed.digest == stored.digest
    assert loader.take(stored.digest) is None
    (stored.folder / "head.safetensors").write_bytes(b"nothing")
    loader.want(stored)
    assert done.acquire(timeout=60)
    assert not loader.has(stored.digest)
    for _ in range(2):
        with pytest.raises(AdapterRefused, match="SHA-256 differs"):
            loader.take(stored.digest)


# The doorstep


class SlowLoader(AdapterLoader):
    """Reads only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def want(self, stored: Any) -> None:
        self.asked.append(stored)

    def read_all(self) -> None:
        for stored in self.asked:
            self._read[stored.digest] = parse_adapter(stored.folder)
            self.on_read(stored.digest)
        self.asked.clear()


def looped(engine: Engine) -> tuple[EngineLoop, SlowLoader, list[Any]]:
    sent: list[Any] = []
    loader = SlowLoader()
    engine.loader = engine._tools.residency._loader = loader
    loop = EngineLoop(engine, Scheduler(), sent.append, clock=lambda: 1.0, doorstep=Doorstep(loader, engine.absent))
    return loop, loader, sent


def answered(sent: list[Any]) -> list[int]:
    return [message["outcome"]["request_id"] for message in sent if message["kind"] == "outcome"]


def ask(loop: EngineLoop, *requests: Request) -> None:
    for request in requests:
        loop.inbox.put({"kind": "request", "request": request_to_plain(request)})
    while loop.step():
        pass


def test_who_waits_for_a_disk_keeps_nobody_else_waiting(place: Path) -> None:
    loop, loader, sent = looped(open_engine(place, places=3))
    ask(loop, classify(1, "one"), classify(2, "two"), classify(3, "one"), Request(4, "embed_image", film=noise_film(1)))
    assert answered(sent) == [4]
    assert {stored.name for stored in loader.asked} == {"one", "two"}
    loop.inbox.put({"kind": "cancel", "id": 3})
    loader.read_all()
    while loop.step():
        pass
    assert answered(sent) == [4, 1, 2]
    ask(loop, classify(5, "two"))
    assert answered(sent) == [4, 1, 2, 5]
    assert not loader.asked


def test_a_name_nobody_knows_and_one_unloaded_are_told_so_at_once(place: Path) -> None:
    engine = open_engine(place, places=3, unloaded=("two",))
    loop, loader, sent = looped(engine)
    ask(loop, classify(1, "nobody"), classify(2, "two"))
    codes = {m["outcome"]["request_id"]: m["outcome"]["error_code"] for m in sent if m["kind"] == "outcome"}
    assert codes == {1: "adapter_not_found", 2: "adapter_not_found"}
    ask(loop, Request(3, "load", adapter="two"))
    assert [stored.name for stored in loader.asked] == ["two"]
    loader.read_all()
    while loop.step():
        pass
    assert answered(sent)[-1] == 3
