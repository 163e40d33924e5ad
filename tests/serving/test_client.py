"""Our own client against the running API, and the errors it makes of what can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from live_api import LABELS, color_picture, nifti_volume, png_film, serving, wait_until

from foundation.errors import (
    AdapterRefused,
    DeadlineExceeded,
    EngineUnavailable,
    FilmUnsupported,
    InvalidRequest,
    Overloaded,
    ServiceError,
    Unauthorized,
)
from serving.api.app import create_app
from serving.client import Client, Picture
from serving.fake import (
    ADAPTER,
    BASE,
    CONTRACT,
    DETECTOR,
    EMBED_DIM,
    FINDINGS,
    FUSER,
    SEGMENTER,
    FakeGateway,
    answer_words,
)
from serving.http_errors import BodyTooLarge, ModelNotFound
from serving.messages import ChatTurn, Sampling
from serving.schemas.analyze import AnalyzeTask
from serving.schemas.segment import PointMark


@pytest.fixture
def client(address: str, gateway: FakeGateway) -> Iterator[Client]:
    with Client(address) as found:
        yield found


def test_models(client: Client) -> None:
    assert [model.id for model in client.models()][:2] == [BASE, ADAPTER]
    assert client.model(ADAPTER).vesalius.labels == list(FINDINGS)
    with pytest.raises(ModelNotFound):
        client.model("nowhere")


def test_health(client: Client, gateway: FakeGateway) -> None:
    assert client.health().ready
    gateway.is_ready = False
    assert not client.health().ready


def test_zero_shot(client: Client) -> None:
    answer = client.zero_shot([png_film(1), color_picture(), b"junk"], LABELS, negatives=["clear", "clear"])
    assert answer.scoring == "pairwise"
    assert [item.assessed for item in answer.data] == [True, False, False]
    assert [score.label for score in answer.data[0].scores] == LABELS
    assert answer.data[2].error is not None
    assert answer.data[2].error.code == "film_unsupported"


def test_classify_a_chosen_slice(client: Client) -> None:
    found = client.classify([Picture(nifti_volume(), slice_index=4)], ADAPTER, include_film=True).data[0]
    assert found.film is not None
    assert (found.film.slice_index, found.film.slices) == (4, 20)
    assert found.film.png is not None
    assert [label.label for label in found.labels] == list(FINDINGS)


def test_embed_gives_unit_vectors_texts_first(client: Client) -> None:
    vectors = client.embed(["effusion"], [png_film()])
    assert (vectors.shape, vectors.dtype) == ((2, EMBED_DIM), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(vectors[1], client.embed(films=[png_film()])[0])
    np.testing.assert_array_equal(vectors[0], client.embed(["effusion"])[0])


def test_a_text_that_looks_like_an_address_stays_a_text(client: Client) -> None:
    assert client.embed(["data: normal heart size"]).shape == (1, EMBED_DIM)


def test_ask_streams_and_ends_with_its_evidence(client: Client, gateway: FakeGateway) -> None:
    history = [ChatTurn("user", "Hello"), ChatTurn("assistant", "Hello.")]
    pieces = list(client.ask("Is there an effusion?", film=png_film(), history=history, sampling=Sampling(seed=3)))
    asked = gateway.requests[-1]
    assert [piece.text for piece in pieces[:-1]] == list(answer_words(asked))
    assert asked.turns == (*history, ChatTurn("user", "Is there an effusion?"))
    assert asked.sampling.seed == 3
    last = pieces[-1]
    assert (last.text, last.finish_reason) == ("", "stop")
    assert last.usage is not None
    assert last.usage.completion_tokens == len(pieces) - 1
    assert last.extras is not None
    assert last.extras.evidence is not None
    assert last.extras.evidence.heatmap is not None
    assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_maps_come_when_asked_for_one_a_finding(client: Client) -> None:
    (*_, plain), (*_, mapped) = (
        list(client.ask("Is there an effusion?", film=png_film(), maps=maps)) for maps in (False, True)
    )
    assert plain.extras is not None
    assert plain.extras.evidence is not None
    assert plain.extras.evidence.maps is None
    assert mapped.extras is not None
    assert mapped.extras.evidence is not None
    assert mapped.extras.evidence.maps is not None
    found = mapped.extras.evidence
    assert [one.label for one in found.maps or []] == [finding.label for finding in found.findings]
    assert all(one.low < one.high for one in found.maps or [])


def test_the_base_says_how_films_are_prepared(client: Client) -> None:
    base, adapter, *_ = client.models()
    assert base.vesalius.preprocessing is not None
    assert base.vesalius.preprocessing.model_dump() == asdict(CONTRACT)
    assert adapter.vesalius.preprocessing is None


def test_closing_the_iterator_withdraws_the_question(client: Client, gateway: FakeGateway) -> None:
    gateway.delay_s = 0.05
    pieces = client.ask("Is there an effusion?", film=png_film())
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    wait_until(lambda: len(gateway.cancelled) == 1)


def test_errors_are_of_the_class_their_code_stands_for(client: Client, gateway: FakeGateway) -> None:
    with pytest.raises(FilmUnsupported) as bad_film:
        client.classify([b"junk"], ADAPTER)
    assert bad_film.value.param == "images[0]"
    with pytest.raises(InvalidRequest, match="labels"):
        client.zero_shot([png_film()], [])
    with pytest.raises(BodyTooLarge):
        client.classify([png_film(size=500)], ADAPTER)
    gateway.error = ("engine_unavailable", "The engine is starting.")
    with pytest.raises(EngineUnavailable, match="is starting"):
        next(client.ask("Hello"))
    gateway.break_after = 1
    pieces = client.ask("Hello")
    assert next(pieces).text
    with pytest.raises(EngineUnavailable, match="is starting"):
        next(pieces)


def test_overloaded_carries_when_to_come_back(client: Client, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    items = app.state.service.items
    monkeypatch.setattr(items, "capacity", 1)
    with items.take(1), pytest.raises(Overloaded) as refused:
        client.classify([png_film()], ADAPTER)
    assert refused.value.retry_after_s >= 1


def test_no_server_is_said_plainly() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(EngineUnavailable, match="vesalius serve"):
        client.models()


def test_a_proxy_of_the_environment_never_sees_a_film(
    address: str, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Client(address) as client:
        assert client.health().ready


def test_a_slow_server_is_a_deadline(address: str, gateway: FakeGateway) -> None:
    gateway.delay_s = 1.0
    with Client(address, timeout_s=0.2) as client, pytest.raises(DeadlineExceeded):
        client.classify([png_film()], ADAPTER)


def test_the_key_is_sent() -> None:
    key = "correct-horse-battery-staple"
    with serving(create_app(FakeGateway(), api_key=key)) as address:
        with Client(address, api_key=key) as holder:
            assert holder.health().ready
        with Client(address) as stranger, pytest.raises(Unauthorized):
            stranger.health()


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"error": "text"}', b'{"error": {"code": "new", "message": "m"}}'])
def test_answers_of_another_server_do_not_break_the_client(content: bytes) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(502, content=content))
    with Client(transport=transport) as client, pytest.raises(ServiceError):
        client.models()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=content))
    with Client(transport=transport) as client, pytest.raises(ServiceError):
        client.models()


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 3}'])
def test_events_of_another_server_do_not_break_the_client(line: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=f"data: {line}\n\n".encode()))
    with Client(transport=transport) as client, pytest.raises(ServiceError, match="does not understand"):
        list(client.ask("Hello"))


def test_a_stream_that_breaks_off_is_an_error() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b": nothing\n\n"))
    with Client(transport=transport) as client, pytest.raises(EngineUnavailable, match="broke off"):
        list(client.ask("Hello"))


def test_tasks_of_adapters_are_typed(client: Client) -> None:
    mark = PointMark(row=10, column=20)
    masks = client.segment([png_film()], SEGMENTER, points=[mark]).data[0]
    assert masks.film is not None
    assert masks.masks[0].rle is not None
    assert masks.masks[0].rle.size == (48, 48)
    assert client.anomaly([png_film()], DETECTOR, heat=False).data[0].heat is None
    assert client.mask_file(png_film(), SEGMENTER, labels=[masks.masks[0].label])[:4] == (348).to_bytes(4, "little")
    with pytest.raises(InvalidRequest, match="DICOM"):
        client.mask_file(png_film(), SEGMENTER, "application/dicom")
    fused = client.fuse(FUSER, [png_film()], text="Fever.").result
    assert fused is not None
    assert fused.present == ["film", "note"]
    whole = client.analyze(png_film(), [ADAPTER, AnalyzeTask(labels=LABELS), AnalyzeTask(model=SEGMENTER, points=[mark])])
    findings, scores, lungs = whole.data
    assert findings.classify is not None
    assert scores.zero_shot is not None
    assert lungs.segment is not None
    assert lungs.segment.masks == masks.masks


def test_adapters_are_loaded_and_unloaded(client: Client) -> None:
    assert client.unload_adapter(ADAPTER).was_resident
    with pytest.raises(ModelNotFound):
        client.classify([png_film()], ADAPTER)
    with pytest.raises(AdapterRefused):
        client.load_adapter(ADAPTER, "f" * 64)
    assert client.load_adapter(ADAPTER).task == "classification"
    assert client.classify([png_film()], ADAPTER).data[0].labels
