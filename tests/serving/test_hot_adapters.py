"""Adapters loaded, replaced and unloaded while requests run: each answer is of one version, whole, and no other is delayed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live_api import error_of, png_film, serving
from tiny import noise_film, write_checkpoint, write_task

from adapters.bank import AdapterBank
from adapters.card import digest_of
from adapters.store import AdapterStore
from foundation.checkpoint import open_checkpoint
from serving.api.app import create_app
from serving.config import EngineConfig, ServerConfig
from serving.engine import Engine
from serving.engine_link import EngineLink
from serving.messages import Batch, Film, Outcome, RawFilm, Request
from serving.worker import Worker

TASK = "classification"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and two versions of one adapter outside of any store."""
    place = tmp_path_factory.mktemp("hot")
    backbone = open_checkpoint(write_checkpoint(place / "checkpoint", with_decoder=False)).backbone
    for number in (1, 2):
        write_task(place / str(number), backbone, "live", TASK, first_block=3, seed=number)
    return place


@pytest.fixture
def store(made: Path, tmp_path: Path) -> AdapterStore:
    store = AdapterStore(tmp_path / "adapters")
    store.add(made / "1" / "live")
    return store


def open_engine(made: Path, store: AdapterStore, **options: Any) -> Engine:
    return Engine.open(EngineConfig(checkpoint=str(made / "checkpoint"), adapters_dir=str(store.roots[-1]), **options))


def one(engine: Engine, request: Request) -> Outcome:
    (outcome,) = engine.run(Batch((request,)))
    return outcome


def classify(film: Film, digest: str = "", number: int = 1) -> Request:
    return Request(number, "classify", adapter="live", film=film, digest=digest)


def load(digest: str = "") -> Request:
    return Request(9, "load", adapter="live", options={"digest": digest})


def read(outcome: Outcome) -> tuple[str, tuple[float, ...]]:
    assert outcome.value is not None, outcome.error_message
    return outcome.value["provenance"]["adapter"], tuple(np.round(outcome.value["probabilities"], 4))


def test_who_asked_for_the_old_version_gets_it_and_who_asks_now_the_new(made: Path, store: AdapterStore) -> None:
    engine = open_engine(made, store)
    film = noise_film(1)
    old = store.get("live").digest
    loaded = one(engine, load(old)).value
    assert loaded is not None
    assert (loaded["digest"], loaded["task"]) == (old, TASK)
    assert 0 <= loaded["deviation"] < 1e-4
    before = read(one(engine, classify(film, old)))
    store.add(made / "2" / "live", replace=True)
    new = store.get("live").digest
    assert one(engine, load(old)).error_code == "adapter_refused"
    batch = (classify(film, old, 1), replace(load(new), id=2), classify(film, new, 3), classify(film, old, 4))
    answers = {outcome.request_id: outcome for outcome in engine.run(Batch(batch))}
    assert read(answers[1]) == read(answers[4]) == before
    assert read(answers[3])[0] == new
    assert read(answers[3])[1] != before[1]
    assert digest_of(made / "2" / "live") == new


def test_an_unloaded_adapter_is_refused_until_it_is_loaded(made: Path, store: AdapterStore) -> None:
    engine = open_engine(made, store)
    film = noise_film(1)
    before = read(one(engine, classify(film)))
    assert engine._tools.residency.bank.slots == (1,)
    unloaded = one(engine, Request(2, "unload", adapter="live")).value
    assert unloaded is not None
    assert unloaded["was_resident"]
    assert engine._tools.residency.bank.slots == ()
    refused = one(engine, classify(film))
    assert refused.error_code == "adapter_not_found"
    assert "unloaded" in refused.error_message
    assert not one(engine, load()).is_error
    assert read(one(engine, classify(film))) == before
    reopened = open_engine(made, store, unloaded=("live",))
    assert one(reopened, classify(film)).error_code == "adapter_not_found"


def test_a_bank_that_differs_from_the_definition_is_found_at_load(
    made: Path, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(made, store)
    install = AdapterBank.install

    def wrongly(bank: AdapterBank, weights: Any) -> int:
        slot = install(bank, weights)
        for layer in bank._layers.values():
            for stack in layer._stacks.values():
                stack.B[1:] *= 1.1
        return slot

    monkeypatch.setattr(AdapterBank, "install", wrongly)
    refused = one(engine, load())
    assert refused.error_code == "adapter_refused"
    assert "differs from the plain definition" in refused.error_message
    assert engine._tools.residency.bank.slots == ()
    good = one(engine, Request(3, "embed_image", film=noise_film(1)))
    assert not good.is_error
    monkeypatch.undo()
    assert not one(engine, load()).is_error


def test_a_folder_replaced_while_it_is_read_is_never_a_mixture(
    made: Path, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store changes between the card and the tensors, as a careless copy would do it."""
    import adapters.files as reading

    engine = open_engine(made, store)
    folder, other = store.roots[-1] / "live", made / "2" / "live"
    parse = reading._parse_lora

    def slowly(path: Path) -> Any:
        monkeypatch.undo()
        for name in ("adapter_model.safetensors", "head.safetensors", "card.json"):
            shutil.copyfile(other / name, folder / name)
        return parse(path)

    monkeypatch.setattr(reading, "_parse_lora", slowly)
    digest, numbers = read(one(engine, classify(noise_film(1))))
    assert digest == digest_of(other)
    assert numbers == read(one(open_engine(made, store), classify(noise_film(1))))[1]


class InProcessLink(EngineLink):
    """An EngineLink whose engine lives here: a queue in order, answered a batch at a time."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.config)
        self.engine = engine
        self.facts = {**vars(engine.facts)}
        self.batches: list[Batch] = []
        self._queue: list[Request] = []
        self._running: Any = object()
        self._up.set()

    async def ask(self, request: Request) -> Any:
        from serving.link import Answers

        answers = Answers(request.id)
        self._waiting[request.id] = answers
        self._queue.append(request)
        asyncio.get_running_loop().call_later(0.002, self._run)
        return answers

    def _run(self) -> None:
        queue, self._queue = self._queue, []
        if queue:
            self.batches.append(Batch(tuple(queue)))
        for outcome in self.engine.run(Batch(tuple(queue))):
            self._deliver(outcome)

    def release(self, answers: Any) -> None:
        self._waiting.pop(answers.request_id, None)


@pytest.fixture
def worker(made: Path, store: AdapterStore) -> Worker:
    """A real Worker over an engine in this process; films come as they are."""
    engine = open_engine(made, store)
    worker = Worker(ServerConfig(engine=engine.config), InProcessLink(engine))

    async def decode(raw: RawFilm) -> Film:
        return noise_film(len(raw.data))

    worker.decode = decode  # type: ignore[method-assign]
    return worker


@pytest.fixture
def address(worker: Worker) -> Iterator[str]:
    with serving(create_app(worker)) as url:
        yield url


def test_replaced_under_load_no_answer_is_a_mixture(address: str, made: Path, store: AdapterStore, worker: Worker) -> None:
    films = [png_film(size=size) for size in (16, 24, 32)]  # of other lengths, by which the decoder here tells them apart
    truth: dict[tuple[str, int], Any] = {}
    for number in (1, 2):
        other = AdapterStore(store.roots[-1].parent / f"truth{number}")
        other.add(made / str(number) / "live")
        engine = open_engine(made, other)
        for index, film in enumerate(films):
            digest, numbers = read(one(engine, classify(noise_film(len(film)))))
            truth[digest, index] = numbers
    assert len(set(truth.values())) > 2
    seen = asyncio.run(_hammer(address, films, made, store))
    assert len(seen) == 60
    for index, digest, numbers in seen:
        assert np.allclose(numbers, truth[digest, index], atol=1e-3)
    assert {digest for _, digest, _ in seen} == {digest for digest, _ in truth}


async def _hammer(address: str, films: list[bytes], made: Path, store: AdapterStore) -> list[tuple[int, str, Any]]:
    """Six clients ask on while the adapter is replaced to and fro and loaded by hand."""
    seen: list[tuple[int, str, Any]] = []
    async with httpx.AsyncClient(base_url=address, timeout=120, trust_env=False) as http:

        async def ask(client: int) -> None:
            for turn in range(10):
                index = (client + turn) % len(films)
                answer = await http.post("/v1/classify", files={"file": ("f", films[index])}, data={"model": "live"})
                assert answer.status_code == 200, answer.text
                (item,) = answer.json()["data"]
                numbers = [label["probability"] for label in item["labels"]]
                seen.append((index, item["provenance"]["adapter"], numbers))

        async def swap() -> None:
            for number in (2, 1, 2, 1, 2):
                await asyncio.to_thread(store.add, made / str(number) / "live", replace=True)
                loaded = await http.post("/v1/adapters/live", json={"digest": store.get("live").digest})
                assert loaded.status_code == 200, loaded.text

        await asyncio.gather(swap(), *(ask(client) for client in range(6)))
    return seen


def test_the_routes_say_what_is_there(address: str, store: AdapterStore) -> None:
    with httpx.Client(base_url=address, timeout=120, trust_env=False) as http:
        (mine,) = [one for one in http.get("/v1/models").json()["data"] if one["id"] == "live"]
        assert (mine["vesalius"]["task"], mine["vesalius"]["capabilities"]) == ("classification", ["classify"])
        assert http.delete("/v1/adapters/live").json()["was_resident"] is False  # nobody has asked for it yet
        assert "live" not in [one["id"] for one in http.get("/v1/models").json()["data"]]
        assert error_of(http.delete("/v1/adapters/live"))["code"] == "adapter_not_found"
        assert error_of(http.post("/v1/adapters/nobody"))["code"] == "adapter_not_found"
        loaded = http.post("/v1/load_lora_adapter", json={"lora_name": "live", "lora_path": "live"})
        assert loaded.status_code == 200
        answer = http.post("/v1/classify", files={"file": ("f", png_film())}, data={"model": "live"})
        assert answer.json()["data"][0]["provenance"]["adapter"] == store.get("live").digest
