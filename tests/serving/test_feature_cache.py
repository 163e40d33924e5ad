"""What is kept of films and texts: by tenant, within its bytes, not at all where the caller says so, and gone when deleted."""

from __future__ import annotations

from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from live_api import LABELS, data_uri, error_of, png_film
from tiny import noise_film, write_checkpoint

from foundation.backbone import ImageFeatures
from serving.config import EngineConfig
from serving.engine import Engine
from serving.fake import FakeGateway
from serving.feature_cache import FeatureCache, FeatureKey
from serving.messages import Batch, Request

ZERO_SHOT = {"labels": ["effusion", "mass"], "templates": ["there is {}"], "negatives": None}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("tiny"), with_decoder=False))


@pytest.fixture
def engine(checkpoint: str) -> Engine:
    return Engine.open(EngineConfig(checkpoint=checkpoint))


def ask(engine: Engine, tenant: str, seed: int = 1, **changes: object) -> tuple[int, list[float]]:
    """How many films went through the trunk for it, and its scores."""
    request = Request(1, "zero_shot", film=noise_film(seed), options=ZERO_SHOT, tenant=tenant)
    before = engine.trunk_rows
    (outcome,) = engine.run(Batch((replace(request, **changes),)))  # type: ignore[arg-type]
    assert outcome.value is not None
    return engine.trunk_rows - before, list(outcome.value["scores"])


def count_texts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is really read from here on."""
    read: list[str] = []
    encode = engine.backbone.encode_text
    monkeypatch.setattr(engine.backbone, "encode_text", lambda texts: read.extend(texts) or encode(texts))
    return read


def test_a_second_question_costs_nothing_and_answers_the_same(engine: Engine) -> None:
    first, second = ask(engine, "a"), ask(engine, "a")
    assert (first[0], second[0]) == (1, 0)
    assert first[1] == second[1]
    other_film = ask(engine, "a", seed=2)
    assert other_film[0] == 1
    assert not np.allclose(other_film[1], first[1], atol=1e-3)


def test_two_tenants_share_neither_film_nor_text(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_texts(engine, monkeypatch)
    ask(engine, "a")
    assert len(read) == 2
    assert ask(engine, "b")[0] == 1
    assert len(read) == 4
    assert ask(engine, "b")[0] == ask(engine, "a")[0] == 0
    assert len(read) == 4


def test_a_batch_of_both_computes_what_either_lacks(engine: Engine) -> None:
    ask(engine, "a")
    film = noise_film(1)
    before = engine.trunk_rows
    engine.run(Batch(tuple(Request(n, "embed_image", film=film, tenant=tenant) for n, tenant in enumerate("ab"))))
    assert engine.trunk_rows == before + 1


def test_no_store_keeps_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_texts(engine, monkeypatch)
    assert ask(engine, "a", stores=False)[0] == 1
    assert ask(engine, "a", stores=False)[0] == 1
    assert len(read) == 4


def test_deleting_a_film_or_everything_is_for_one_tenant(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for tenant in "ab":
        for seed in (1, 2):
            ask(engine, tenant, seed)
    engine.forget("a", noise_film(1).digest)
    assert [ask(engine, "a", 1)[0], ask(engine, "a", 2)[0], ask(engine, "b", 1)[0]] == [1, 0, 0]
    read = count_texts(engine, monkeypatch)
    engine.forget("a", "")
    assert [ask(engine, "a", 1)[0], ask(engine, "a", 2)[0], ask(engine, "b", 1)[0]] == [1, 1, 0]
    assert len(read) == 2


def test_the_canary_is_a_real_forward_each_time(engine: Engine) -> None:
    before = engine.trunk_rows
    engine.check()
    engine.check()
    assert engine.trunk_rows == before + 2


def test_a_cache_of_no_bytes_keeps_nothing(checkpoint: str) -> None:
    engine = Engine.open(EngineConfig(checkpoint=checkpoint, cached_film_bytes=0))
    assert [ask(engine, "a")[0], ask(engine, "a")[0]] == [1, 1]


def test_the_bytes_are_bounded_and_the_oldest_goes_first() -> None:
    features = ImageFeatures(torch.zeros(1, 4), torch.zeros(1, 4, 4), (torch.zeros(1, 1, 2, 2),), (2, 2))
    size = (4 + 16 + 4) * 4
    cache = FeatureCache(3 * size)
    keys = [FeatureKey.of("a", str(number), bytes([number]), "") for number in range(4)]
    for key in keys[:3]:
        cache.put(key, features)
    assert cache.get(keys[0]) is not None
    cache.put(keys[3], features)
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]
    assert cache.held_bytes == 3 * size
    assert cache.forget("a") == 3
    assert (cache.held_bytes, len(cache)) == (0, 0)


def test_headers_and_routes_reach_the_engine(http: httpx.Client, gateway: FakeGateway) -> None:
    body = {"images": data_uri(png_film()), "labels": LABELS}
    http.post("/v1/zero_shot", json=body)
    http.post("/v1/zero_shot", json=body, headers={"Cache-Control": "max-age=0, No-Store"})
    assert [request.stores for request in gateway.requests] == [True, False]
    digest = http.post("/v1/zero_shot", json=body).json()["data"][0]["film"]["digest"]
    assert http.delete(f"/v1/cache/{digest}").status_code == 204
    assert http.delete("/v1/cache").status_code == 204
    assert gateway.forgotten == [("-", digest), ("-", "")]
    assert error_of(http.delete("/v1/cache/abc"))["param"] == "digest"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "9" * 12, "１"])
def test_a_deadline_that_is_no_number_is_refused(http: httpx.Client, value: str) -> None:
    refused = http.post("/v1/zero_shot", json={}, headers={"X-Deadline-Ms": value.encode()})
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "X-Deadline-Ms"


def test_a_callers_deadline_ends_the_work(http: httpx.Client, gateway: FakeGateway) -> None:
    gateway.delay_s = 30.0
    body = {"images": data_uri(png_film()), "labels": LABELS}
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    for path, content in (("/v1/zero_shot", body), ("/v1/chat/completions", chat)):
        late = http.post(path, json=content, headers={"X-Deadline-Ms": "150"})
        assert late.status_code == 504
        assert "150 ms of X-Deadline-Ms" in error_of(late)["message"]
        assert late.elapsed.total_seconds() < 5
    assert gateway.cancelled == [request.id for request in gateway.requests]
    assert all(request.deadline - request.arrival <= 0.151 for request in gateway.requests if request.deadline)
