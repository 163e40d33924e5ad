"""Many adapters through the real server with its real processes: right answers only, whatever comes, goes and breaks.

`python -m benchmarks.adapters` is the long form.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_api import error_of

from adapters.store import AdapterStore
from benchmarks.adapter_traffic import (
    adapter_bytes,
    copy_adapters,
    make_films,
    replace_to_and_fro,
    traffic,
    truth_of,
    uniform,
    write_adapters,
)
from foundation.tiny import make_tiny_checkpoint
from serving.config import EngineConfig, ServerConfig
from serving.server import background

COUNT = 20
CLIENTS = 64
FILMS = make_films(3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and adapters outside of any store."""
    place = tmp_path_factory.mktemp("many")
    make_tiny_checkpoint(place / "tiny")
    write_adapters(place / "all", str(place / "tiny"), COUNT)
    return place


@pytest.fixture(scope="module")
def truth(made: Path) -> dict[tuple[str, int], tuple[float, ...]]:
    names = [folder.name for folder in sorted((made / "all").iterdir())]
    found = truth_of(made / "all", str(made / "tiny"), names, FILMS)
    assert len(set(found.values())) == COUNT * len(FILMS), "answers that are alike could be mixed up unseen"
    return found


@pytest.fixture(scope="module")
def server(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address and its store, with places for 6 adapters on the device and for few more in memory."""
    place = tmp_path_factory.mktemp("server")
    names = [folder.name for folder in sorted((made / "all").iterdir())]
    copy_adapters(made / "all", place / "store", names)
    size = adapter_bytes(place / "store", str(made / "tiny"), names[0])
    engine = EngineConfig(
        checkpoint=str(made / "tiny"),
        adapters_dir=str(place / "store"),
        threads=1,
        cached_film_bytes=0,
        adapter_bytes=6 * size,
        adapter_memory_bytes=6 * size,
    )
    config = ServerConfig(port=0, engine=engine, home=str(place / "home"), start_limit_s=250.0)
    with background(config) as url:
        yield url, place / "store"


def names_of(store: Path) -> list[str]:
    return [stored.name for stored in AdapterStore(store).list()]


def test_64_clients_on_more_adapters_than_there_are_places(server, truth) -> None:  # type: ignore[no-untyped-def]
    url, store = server
    names = names_of(store)
    seen = asyncio.run(traffic(url, names, FILMS, truth, clients=CLIENTS, pick=uniform(len(names), 1), requests=4 * CLIENTS))
    assert (seen.failed, seen.wrong, seen.answers) == ([], 0, 4 * CLIENTS)
    assert len(seen.digests) == COUNT


def test_replaced_under_load_each_answer_is_of_one_version(server, truth, made: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The name `many-0000` holds now its own files, now those of `many-0001` under its name."""
    url, store = server
    versions = [tmp_path / str(number) / "many-0000" for number in (0, 1)]
    for number, version in enumerate(versions):
        shutil.copytree(made / "all" / f"many-000{number}", version)
    card = json.loads((versions[1] / "card.json").read_text())
    (versions[1] / "card.json").write_text(json.dumps({**card, "name": "many-0000"}))
    known = truth | truth_of(versions[1].parent, str(made / "tiny"), ["many-0000"], FILMS)

    async def both() -> tuple[object, int]:
        asking = traffic(url, ["many-0000", "many-0002"], FILMS, known, clients=12, pick=uniform(2, 2), seconds=4.0)
        return await asyncio.gather(asking, replace_to_and_fro(url, store, versions, 3.0))

    seen, replaced = asyncio.run(both())
    assert (seen.failed, seen.wrong) == ([], 0)  # type: ignore[attr-defined]
    assert replaced > 1
    assert len(seen.digests) == 3  # type: ignore[attr-defined]
    AdapterStore(store).add(versions[0], replace=True)


def test_unloaded_under_load_neighbours_do_not_notice(server, truth) -> None:  # type: ignore[no-untyped-def]
    url, store = server
    names = names_of(store)[4:8]

    async def both() -> tuple[object, list[int]]:
        asking = traffic(url, names, FILMS, truth, clients=8, pick=uniform(len(names), 3), seconds=3.0)
        return await asyncio.gather(asking, _unload_to_and_fro(url, "many-0009"))

    seen, statuses = asyncio.run(both())
    assert (seen.failed, seen.wrong) == ([], 0)  # type: ignore[attr-defined]
    assert set(statuses) == {200}


async def _unload_to_and_fro(url: str, name: str) -> list[int]:
    statuses = []
    async with httpx.AsyncClient(base_url=url, timeout=200, trust_env=False) as http:
        for _ in range(4):
            statuses.append((await http.delete(f"/v1/adapters/{name}")).status_code)
            gone = await http.post("/v1/classify", files={"file": ("f", FILMS[0])}, data={"model": name})
            assert error_of(gone)["code"] in ("adapter_not_found", "model_not_found")
            statuses.append((await http.post(f"/v1/adapters/{name}")).status_code)
    return statuses


def test_a_broken_replacement_leaves_the_old_version_and_the_neighbours(server, truth) -> None:  # type: ignore[no-untyped-def]
    """Files are overwritten in their place by ones that do not match their card."""
    url, store = server
    folder, names = store / "many-0003", ["many-0003", "many-0004"]
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    old = AdapterStore(store).get("many-0003").digest
    warm = asyncio.run(traffic(url, names, FILMS, truth, clients=4, pick=uniform(2, 4), requests=16))
    assert (warm.failed, warm.wrong) == ([], 0)
    try:
        card = json.loads(kept["card.json"])
        (folder / "card.json").write_text(json.dumps({**card, "description": "another version"}))
        (folder / "adapter_model.safetensors").write_bytes(kept["adapter_model.safetensors"][:-8])
        assert AdapterStore(store).get("many-0003").digest != old
        with httpx.Client(base_url=url, timeout=200, trust_env=False) as http:
            refused = http.post("/v1/adapters/many-0003")
            assert error_of(refused)["code"] == "adapter_refused"
        seen = asyncio.run(traffic(url, names, FILMS, truth, clients=8, pick=uniform(2, 5), seconds=2.5))
        assert (seen.failed, seen.wrong) == ([], 0)
        assert old in seen.digests
    finally:
        for name, data in kept.items():
            (folder / name).write_bytes(data)


def test_a_broken_adapter_that_never_answered_fails_alone(server, truth) -> None:  # type: ignore[no-untyped-def]
    url, store = server
    shutil.copytree(store / "many-0005", store / "broken")
    card = json.loads((store / "broken" / "card.json").read_text())
    (store / "broken" / "card.json").write_text(json.dumps({**card, "name": "broken"}))
    (store / "broken" / "head.safetensors").write_bytes(b"nothing")
    try:
        names = ["broken", "many-0006"]

        async def both() -> list[object]:
            return await asyncio.gather(
                *(traffic(url, [name], FILMS, truth, clients=4, pick=lambda: 0, requests=12) for name in names)
            )

        until_listed = asyncio.run(_listed(url, "broken"))
        assert until_listed
        broken, good = asyncio.run(both())
        assert (good.failed, good.wrong, good.answers) == ([], 0, 12)  # type: ignore[attr-defined]
        assert broken.answers == 0  # type: ignore[attr-defined]
        assert all("SHA-256 differs" in said for said in broken.failed), broken.failed  # type: ignore[attr-defined]
    finally:
        shutil.rmtree(store / "broken")


async def _listed(url: str, name: str) -> bool:
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        for _ in range(100):
            if name in [one["id"] for one in (await http.get("/v1/models")).json()["data"]]:
                return True
            await asyncio.sleep(0.1)
    return False
