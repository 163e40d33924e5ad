"""The routes of adapters' tasks over a FakeGateway: what they answer, as JSON, as multipart and as files."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
from live_api import (
    LABELS,
    color_picture,
    data_uri,
    error_of,
    files,
    nifti_volume,
    png_film,
    without_times,
)
from PIL import Image

from adapters.tasks.rle import from_rle
from serving.api.app import create_app
from serving.fake import ADAPTER, BASE, DETECTOR, FUSER, MODELS, SEGMENTER, FakeGateway
from serving.fake_tasks import LUNGS
from serving.mask_files import DICOM, NIFTI

FILM = data_uri(png_film())
POINT = {"row": 10, "column": 20}


def picture(uri: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def segment(http: httpx.Client, **fields: Any) -> Any:
    answer = http.post("/v1/segment", json={"images": FILM, "model": SEGMENTER, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]


def test_masks_are_told_in_the_films_own_pixels_as_rle_and_as_png(http: httpx.Client) -> None:
    item = segment(http)
    assert [mask["label"] for mask in item["masks"]] == list(LUNGS)
    assert (item["film"]["height"], item["film"]["width"]) == (48, 48)
    assert item["found"] == list(LUNGS[:2])
    assert not item["nothing_here"]
    drawn = segment(http, mask_format="png")["masks"]
    for mask, other in zip(item["masks"], drawn, strict=True):
        inside = from_rle(mask["rle"])
        assert inside.shape == (48, 48)
        assert mask["area_pixels"] == inside.sum()
        assert mask["found"] == inside.any() == (mask["presence"] >= mask["threshold"])
        assert mask["area_mm2"] is None
        np.testing.assert_array_equal(picture(other["png"]) > 0, inside)
        assert other["rle"] is None


def test_a_class_by_name_and_nothing_of_it(http: httpx.Client) -> None:
    item = segment(http, labels=LUNGS[-1])
    assert [mask["label"] for mask in item["masks"]] == [LUNGS[-1]]
    assert (item["found"], item["nothing_here"]) == ([], True)
    assert item["masks"][0]["area_pixels"] == 0


def test_marks_are_the_films_own_or_everyones(http: httpx.Client, gateway: FakeGateway) -> None:
    images = [FILM, {"data": FILM, "points": [{**POINT, "inside": False}], "boxes": []}]
    box = {"top": 1, "left": 2, "bottom": 9, "right": 8}
    answer = http.post("/v1/segment", json={"images": images, "model": SEGMENTER, "points": POINT, "boxes": [box]})
    assert answer.status_code == 200
    asked = sorted((request.options for request in gateway.requests), key=lambda options: not options["boxes"])
    assert asked[0] == {"labels": None, "points": [[10, 20, True]], "boxes": [[1, 2, 9, 8]]}
    assert asked[1] == {"labels": None, "points": [[10, 20, False]], "boxes": []}


def test_areas_are_in_square_millimetres_where_the_spacing_is_known(http: httpx.Client) -> None:
    volume = base64.b64encode(nifti_volume()).decode()
    (mask, *_) = segment(http, images={"data": volume, "slice_index": 3})["masks"]
    assert mask["area_mm2"] == mask["area_pixels"] > 0  # of one millimetre each


def test_a_nifti_file_lies_where_the_film_does(http: httpx.Client) -> None:
    volume = nifti_volume()
    body = {"images": {"data": base64.b64encode(volume).decode(), "slice_index": 3}, "model": SEGMENTER}
    whole = http.post("/v1/segment", json=body).json()["data"][0]["masks"]
    answer = http.post("/v1/segment", json=body, headers={"Accept": f"{NIFTI}, */*"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, NIFTI)
    film, written = (nibabel.Nifti1Image.from_bytes(data) for data in (volume, answer.content))
    assert written.shape == (*film.shape, len(LUNGS))
    voxels = np.asarray(written.dataobj)
    # the same places in the patient, whichever way the file's axes run
    inside = np.argwhere(voxels[..., 0])
    places = nibabel.affines.apply_affine(written.affine, inside)
    in_film = np.rint(nibabel.affines.apply_affine(np.linalg.inv(film.affine), places)).astype(int)
    assert set(in_film[:, 2]) == {3}
    assert len(inside) == whole[0]["area_pixels"]
    rows, columns = np.nonzero(from_rle(whole[0]["rle"]))
    assert {tuple(place) for place in inside[:, :2]} == set(zip(columns.tolist(), rows.tolist(), strict=True))
    single = http.post("/v1/segment", json={**body, "labels": [LUNGS[0]]}, headers={"Accept": NIFTI})
    assert nibabel.Nifti1Image.from_bytes(single.content).shape == film.shape


@pytest.mark.parametrize(
    ("accept", "images", "words"),
    [
        (NIFTI, [FILM, FILM], "at most 1"),
        (NIFTI, [data_uri(color_picture())], "a photograph"),
        (DICOM, [FILM], "DICOM"),
    ],
)
def test_files_that_cannot_be_written_are_refused_with_the_reason(
    http: httpx.Client, accept: str, images: list[str], words: str
) -> None:
    refused = http.post("/v1/segment", json={"images": images, "model": SEGMENTER}, headers={"Accept": accept})
    assert refused.status_code == 400
    assert words in error_of(refused)["message"]


def test_anomaly_gives_a_p_value_and_a_16_bit_map(http: httpx.Client) -> None:
    answer = http.post("/v1/anomaly", json={"images": FILM, "model": DETECTOR}).json()
    (item,) = answer["data"]
    assert item["score"] == pytest.approx(1 - item["p_value"])
    assert set(item["branches"]) == {"text", "memory", "trained"}
    heat = picture(item["heat"]["png"])
    assert (heat.shape, heat.dtype, heat.max()) == ((48, 48), np.uint16, 65535)
    assert (item["heat"]["low"], item["heat"]["high"]) == pytest.approx((0.25, 0.75))
    assert heat[0, 0] < heat[0, -1] < heat[-1, 0] < heat[-1, -1]  # as the grid of the fake runs
    bare = http.post("/v1/anomaly", json={"images": FILM, "model": DETECTOR, "heat": False}).json()["data"][0]
    assert bare["heat"] is None


def test_fuse_takes_what_there_is(http: httpx.Client, gateway: FakeGateway) -> None:
    body = {"model": FUSER, "images": [FILM, FILM], "text": "Fever.", "tabular": {"crp": "inf", "sex": "F", "ldh": None}}
    answer = http.post("/v1/fuse", json=body).json()
    result = answer["result"]
    assert result["present"] == ["film", "note", "laboratory", "demographics"]
    assert len(result["subsets"]) == 15
    assert result["positive"] == (result["probability"] >= result["threshold"])
    assert len(answer["films"]) == len(gateway.requests[-1].films) == 2
    assert gateway.requests[-1].options == {"tabular": body["tabular"], "contributions": False}
    alone = http.post("/v1/fuse", json={"model": FUSER, "tabular": {"crp": 3}}).json()
    assert alone["result"]["contributions"] is None
    told = http.post("/v1/fuse", json={"model": FUSER, "tabular": {"crp": 3}, "contributions": True}).json()
    assert set(told["result"]["contributions"]) == {"crp"}
    assert (alone["result"]["present"], alone["films"]) == (["laboratory"], [])
    refused = http.post("/v1/fuse", json={"model": FUSER})
    assert error_of(refused)["param"] == "images"
    outside = http.post("/v1/fuse", files=files(png_film(), color_picture()), data={"model": FUSER}).json()
    assert (outside["assessed"], outside["looks_like"], outside["result"]) == (False, "a photograph", None)


def test_json_and_multipart_are_answered_alike(http: httpx.Client) -> None:
    film = png_film()
    cases: list[tuple[str, dict[str, Any]]] = [
        ("/v1/segment", {"model": SEGMENTER, "points": [POINT], "labels": list(LUNGS[:1])}),
        ("/v1/anomaly", {"model": DETECTOR, "heat": True}),
        ("/v1/fuse", {"model": FUSER, "text": "Fever.", "tabular": {"crp": 3}}),
        ("/v1/analyze", {"tasks": [{"model": ADAPTER}, {"labels": LABELS}]}),
    ]
    for path, fields in cases:
        left = http.post(path, json={"images": FILM, **fields})
        plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        right = http.post(path, files=files(film), data=plain)
        assert left.status_code == right.status_code == 200, (left.text, right.text)
        assert without_times(left.json()) == without_times(right.json()), path


def test_one_bad_film_does_not_fail_the_others_and_none_gets_a_number_it_should_not(http: httpx.Client) -> None:
    for path, model, place in (("/v1/segment", SEGMENTER, "masks"), ("/v1/anomaly", DETECTOR, "branches")):
        answer = http.post(path, files=files(png_film(), b"junk", color_picture()), data={"model": model})
        good, bad, outside = answer.json()["data"]
        assert good["error"] is None
        assert good["provenance"]["adapter"] == model
        assert (bad["error"]["code"], bad["error"]["param"]) == ("film_unsupported", "images[1]")
        assert (outside["assessed"], outside["looks_like"]) == (False, "a photograph")
        assert not outside[place]
        assert http.post(path, files=files(b"junk"), data={"model": model}).status_code == 400


def test_an_analysis_asks_once_and_tells_each_task_apart(http: httpx.Client, gateway: FakeGateway) -> None:
    tasks: list[Any] = [
        ADAPTER,
        {"model": SEGMENTER, "points": [POINT], "mask_format": "png"},
        {"labels": LABELS, "scoring": "sigmoid"},
        {"model": "nobody"},
        {"model": FUSER},
        {"model": DETECTOR, "heat": False},
        {},
    ]
    answer = http.post("/v1/analyze", json={"images": FILM, "tasks": tasks})
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    assert len(gateway.requests) == 1
    assert [one["index"] for one in whole["data"]] == list(range(7))
    findings, lungs, labels, nobody, fuser, strange, empty = whole["data"]
    assert without_times(findings["classify"]["labels"]) == without_times(
        http.post("/v1/classify", json={"images": FILM, "model": ADAPTER}).json()["data"][0]["labels"]
    )
    assert lungs["segment"]["masks"][0]["png"].startswith("data:image/png")
    assert [score["label"] for score in labels["zero_shot"]["scores"]] == LABELS
    assert labels["model"] == BASE
    assert strange["anomaly"]["p_value"] > 0
    assert strange["anomaly"]["heat"] is None
    assert (nobody["error"]["code"], nobody["error"]["param"]) == ("model_not_found", "tasks[3].model")
    assert fuser["error"]["code"] == "invalid_request"
    assert empty["error"]["param"] == "tasks[6].labels"
    assert (findings["provenance"]["adapter"], lungs["provenance"]["adapter"]) == (ADAPTER, SEGMENTER)
    assert whole["film"]["digest"] == findings["provenance"]["pixels"]
    outside = http.post("/v1/analyze", json={"images": data_uri(color_picture()), "tasks": [ADAPTER]}).json()
    assert (outside["assessed"], outside["looks_like"]) == (False, "a photograph")
    assert outside["data"][0]["classify"]["labels"] == []
    assert http.post("/v1/analyze", json={"images": FILM, "tasks": ["nobody"]}).status_code == 404
    assert http.post("/v1/analyze", json={"images": [FILM, FILM], "tasks": [ADAPTER]}).status_code == 400


def test_adapters_are_loaded_and_unloaded(http: httpx.Client) -> None:
    gone = http.delete(f"/v1/adapters/{ADAPTER}")
    assert gone.json() == {"object": "adapter.unloaded", "name": ADAPTER, "was_resident": True}
    assert ADAPTER not in [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert http.post("/v1/classify", json={"images": FILM, "model": ADAPTER}).status_code == 404
    digest = next(info.digest for info in MODELS if info.name == ADAPTER)
    assert error_of(http.post(f"/v1/adapters/{ADAPTER}", json={"digest": "f" * 64}))["code"] == "adapter_refused"
    loaded = http.post(f"/v1/adapters/{ADAPTER}", json={"digest": digest}).json()
    assert (loaded["name"], loaded["digest"], loaded["task"]) == (ADAPTER, digest, "classification")
    assert http.post(f"/v1/adapters/{ADAPTER}").status_code == 200  # without a body: whatever the store holds
    assert http.post("/v1/classify", json={"images": FILM, "model": ADAPTER}).status_code == 200
    assert http.post("/v1/adapters/nobody").status_code == 404


def test_vllms_addresses_take_names_and_never_paths(http: httpx.Client, gateway: FakeGateway) -> None:
    body = {"lora_name": ADAPTER, "lora_path": ADAPTER}
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": ADAPTER, "lora_int_id": 1}).status_code == 200
    loaded = http.post("/v1/load_lora_adapter", json={**body, "load_inplace": True})
    assert loaded.text == f"Success: LoRA adapter '{ADAPTER}' added successfully."
    asked = len(gateway.requests)
    for path in ("/etc/passwd", "../lungs", "lungs/..", "", "lungs"):
        refused = http.post("/v1/load_lora_adapter", json={**body, "lora_path": path})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "lora_path")
    for name in ("..%2Fx", "UPPER", "a.b", "lora_"):
        assert http.post(f"/v1/adapters/{name}").status_code in (400, 404)
    both = http.post("/v1/load_lora_adapter", json={"lora_name": "/etc", "lora_path": "/etc"})
    assert error_of(both)["param"] == "lora_name"
    assert len(gateway.requests) == asked


def test_the_openapi_document_holds_every_body_and_answer() -> None:
    document = create_app(FakeGateway()).openapi()
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for name in set(part.split('"')[0] for part in text.split("#/components/schemas/")[1:]):
        assert name in schemas, name
    for path in ("segment", "anomaly", "fuse", "analyze", "adapters/{name}", "load_lora_adapter", "unload_lora_adapter"):
        route = document["paths"][f"/v1/{path}"]["post"]
        assert route["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] in schemas
        assert "application/json" in route["responses"]["200"]["content"]
    assert {DICOM, NIFTI} <= set(document["paths"]["/v1/segment"]["post"]["responses"]["200"]["content"])
    assert not document["paths"]["/v1/adapters/{name}"]["post"]["requestBody"]["required"]
