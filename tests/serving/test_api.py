"""The routes over a FakeGateway: what they answer."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from live_api import LABELS, color_picture, data_uri, error_of, files, nifti_volume, png_film, without_times
from PIL import Image

from serving.fake import ADAPTER, BASE, FINDINGS, MODELS, FakeGateway, fake_film
from serving.messages import RawFilm

FILM = data_uri(png_film())


def test_zero_shot_scores_films_against_labels(http: httpx.Client, gateway: FakeGateway) -> None:
    films = [png_film(1), png_film(2)]
    answer = http.post("/v1/zero_shot", json={"images": [data_uri(film) for film in films], "labels": LABELS}).json()
    assert [item["index"] for item in answer["data"]] == [0, 1]
    for item, film in zip(answer["data"], films, strict=True):
        assert [score["label"] for score in item["scores"]] == LABELS
        assert sum(score["score"] for score in item["scores"]) == pytest.approx(1)
        assert item["provenance"]["pixels"] == fake_film(RawFilm(film)).digest
        assert set(item["timings"]) == {"queue_ms", "decode_ms", "compute_ms"}
    assert answer["scoring"] == gateway.requests[0].options["scoring"] == "softmax"


def test_json_and_multipart_are_answered_alike(http: httpx.Client) -> None:
    films = [png_film(1), png_film(2)]
    uris = [data_uri(film) for film in films]
    left = http.post("/v1/zero_shot", json={"images": uris, "labels": LABELS, "scoring": "sigmoid"})
    right = http.post("/v1/zero_shot", files=files(*films), data={"labels": LABELS, "scoring": "sigmoid"})
    assert without_times(left.json()) == without_times(right.json())
    left = http.post("/v1/classify", json={"images": uris[0], "model": ADAPTER})
    right = http.post("/v1/classify", files=files(films[0]), data={"model": ADAPTER})
    assert without_times(left.json()) == without_times(right.json())
    left = http.post("/v1/embeddings", json={"images": uris, "input": "a"})
    right = http.post("/v1/embeddings", files=files(*films), data={"input": "a"})
    assert without_times(left.json()) == without_times(right.json())
    messages = [{"role": "user", "content": "Is there an effusion?"}]
    left = http.post("/v1/chat/completions", json={"messages": messages, "images": uris[0]})
    right = http.post("/v1/chat/completions", files=files(films[0]), data={"messages": json.dumps(messages)})
    assert without_times(left.json()) == without_times(right.json())
    left = http.post("/v1/zero_shot/hf", json={"inputs": uris[0], "parameters": {"candidate_labels": LABELS}})
    right = http.post(
        "/v1/zero_shot/hf", files=files(films[0]), data={"parameters": '{"candidate_labels": ["effusion", "nodule"]}'}
    )
    assert left.json() == right.json()
    assert left.status_code == 200


def test_one_bad_film_does_not_fail_the_others(http: httpx.Client) -> None:
    films = [png_film(1), b"not a film", png_film(2)[:-900], png_film(2)]
    for path, fields in (("/v1/zero_shot", {"labels": LABELS}), ("/v1/classify", {"model": ADAPTER})):
        whole = http.post(path, files=files(films[0], films[3]), data=fields).json()["data"]
        mixed = http.post(path, files=files(*films), data=fields)
        assert mixed.status_code == 200
        items = mixed.json()["data"]
        assert [item["error"] and item["error"]["code"] for item in items] == [
            None, "film_unsupported", "film_unreadable", None,
        ]  # fmt: skip
        assert items[1]["error"]["param"] == "images[1]"
        assert without_times(items[0]) == without_times(whole[0])
        assert without_times({**items[3], "index": 1}) == without_times(whole[1])


def test_a_film_that_breaks_the_gateway_fails_alone(http: httpx.Client, gateway: FakeGateway) -> None:
    decode = gateway.decode

    async def fragile(raw: RawFilm) -> Any:
        if raw.data == png_film(2):
            raise RuntimeError("patient name in a library's text")
        return await decode(raw)

    gateway.decode = fragile  # type: ignore[method-assign]
    answer = http.post("/v1/zero_shot", files=files(png_film(1), png_film(2)), data={"labels": LABELS})
    assert answer.json()["data"][0]["error"] is None
    assert answer.json()["data"][1]["error"]["code"] == "internal_error"
    assert "patient" not in answer.text


def test_a_lone_bad_film_is_a_status(http: httpx.Client) -> None:
    answer = http.post("/v1/zero_shot", json={"images": [data_uri(b"junk")], "labels": LABELS})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "film_unsupported"
    assert error_of(answer)["param"] == "images[0]"


def test_pairs_of_prompts(http: httpx.Client, gateway: FakeGateway) -> None:
    body = {"images": data_uri(png_film()), "labels": LABELS}
    given = http.post("/v1/zero_shot", json={**body, "negatives": ["clear angles", "clear lungs"]}).json()
    assert given["scoring"] == "pairwise"
    assert gateway.requests[-1].options["negatives"] == given["negatives"] == ["clear angles", "clear lungs"]
    derived = http.post("/v1/zero_shot", json={**body, "scoring": "pairwise"}).json()
    assert gateway.requests[-1].options["negatives"] == derived["negatives"] == ["no effusion", "no nodule"]


def test_templates_are_the_callers_or_the_models(http: httpx.Client, gateway: FakeGateway) -> None:
    body = {"images": data_uri(png_film()), "labels": LABELS}
    http.post("/v1/zero_shot", json={**body, "templates": ["a film with {}", "{}"]})
    assert gateway.requests[-1].options["templates"] == ["a film with {}", "{}"]
    http.post("/v1/zero_shot", json=body)
    assert gateway.requests[-1].options["templates"] == ["{}"]
    models = [replace(MODELS[0], templates=("chest film: {}",))]
    gateway.models = lambda: models  # type: ignore[method-assign]
    http.post("/v1/zero_shot", json=body)
    assert gateway.requests[-1].options["templates"] == ["chest film: {}"]


def test_what_is_not_a_film_of_this_kind_gets_no_number(http: httpx.Client) -> None:
    for path, fields, place in (
        ("/v1/zero_shot", {"labels": LABELS}, "scores"),
        ("/v1/classify", {"model": ADAPTER}, "labels"),
    ):
        item = http.post(path, files=files(color_picture()), data=fields).json()["data"][0]
        assert (item["assessed"], item["looks_like"], item[place]) == (False, "a photograph", [])


def test_hugging_face_shapes(http: httpx.Client) -> None:
    uri, parameters = data_uri(png_film()), {"candidate_labels": [*LABELS, "mass"], "hypothesis_template": "film: {}"}
    single = http.post("/v1/zero_shot/hf", json={"inputs": uri, "parameters": parameters}).json()
    assert [set(entry) for entry in single] == [{"label", "score"}] * 3
    assert single == sorted(single, key=lambda entry: -entry["score"])
    several = http.post("/v1/zero_shot/hf", json={"inputs": [uri, uri], "parameters": parameters}).json()
    assert several == [single, single]
    body = {"images": uri, "labels": parameters["candidate_labels"], "templates": "film: {}", "format": "hf"}
    assert http.post("/v1/zero_shot", json=body).json() == single
    odd = {**parameters, "hypothesis_template": "no place for a label"}
    named = http.post("/v1/zero_shot/hf", json={"inputs": uri, "parameters": odd})
    assert (named.status_code, named.json()["error"]["param"]) == (400, "templates")
    refused = http.post("/v1/zero_shot/hf", files=files(color_picture()), data={"parameters": json.dumps(parameters)})
    assert refused.status_code == 400
    assert "a photograph" in error_of(refused)["message"]


def test_classify_says_which_findings_reach_their_threshold(http: httpx.Client, gateway: FakeGateway) -> None:
    item = http.post("/v1/classify", files=files(png_film()), data={"model": ADAPTER}).json()["data"][0]
    assert [label["label"] for label in item["labels"]] == list(FINDINGS)
    for label in item["labels"]:
        assert label["positive"] == (label["probability"] >= label["threshold"])
    assert gateway.requests[-1].adapter == ADAPTER
    assert item["provenance"]["adapter"] == ADAPTER


def test_the_film_comes_back_as_the_model_saw_it(http: httpx.Client) -> None:
    film = png_film()
    fields = {"model": ADAPTER, "include_film": "true"}
    item = http.post("/v1/classify", files=files(film), data=fields).json()["data"][0]
    encoded = item["film"]["png"].removeprefix("data:image/png;base64,")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    np.testing.assert_array_equal(seen, fake_film(RawFilm(film)).pixels)


def test_slices_are_chosen_for_one_film_or_for_all(http: httpx.Client) -> None:
    encoded = base64.b64encode(nifti_volume()).decode()
    volume = {"data": encoded, "slice_index": 7}
    body = {"images": [volume, encoded], "slice_index": 2, "labels": LABELS}
    films = [item["film"] for item in http.post("/v1/zero_shot", json=body).json()["data"]]
    assert [film["slice_index"] for film in films] == [7, 2]
    too_high = http.post("/v1/zero_shot", json={**body, "images": [{**volume, "slice_index": 20}]})
    assert error_of(too_high)["param"] == "images[0]"


def test_models_never_show_a_path(http: httpx.Client) -> None:
    listed = http.get("/v1/models")
    assert [model["id"] for model in listed.json()["data"]] == [info.name for info in MODELS]
    assert set(listed.json()["data"][0]["vesalius"]) == {
        "kind", "capabilities", "base", "task", "labels", "templates", "digest", "description", "licence", "embed_dim",
            "preprocessing", "limits", "unions", "modalities", "fields",
    }  # fmt: skip
    assert http.get(f"/v1/models/{ADAPTER}").json() == listed.json()["data"][1]


def test_a_model_is_asked_only_what_it_can_do(http: httpx.Client) -> None:
    refused = http.post("/v1/classify", files=files(png_film()), data={"model": BASE})
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "model"
    assert "zero_shot" in error_of(refused)["message"]
