"""Every task through the engine against direct model calls: mixed batches, any order, one film asked of many adapters."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SIZE, noise_film, write_checkpoint, write_task

from adapters.files import read_adapter
from adapters.lora import load_weights, remove_lora
from adapters.tasks.anomaly import Detector
from adapters.tasks.classification import Classifier
from adapters.tasks.fusion import FusionPredictor
from adapters.tasks.prompting import Box, Point, Prompt
from adapters.tasks.rle import from_rle
from adapters.tasks.segmentation import Segmenter
from foundation.checkpoint import open_checkpoint
from foundation.preprocess import InputContract, normalise, to_film
from serving.config import EngineConfig
from serving.engine import Engine
from serving.messages import Batch, Film, Operation, Outcome, Request

EXTENT = (120, 200)
ADAPTERS = {  # name: task, first block (of six), seed
    "findings": ("classification", 0, 1),
    "upper": ("classification", 3, 2),
    "top": ("classification", 5, 3),
    "lungs": ("segmentation", 3, 32),
    "other-lungs": ("segmentation", 1, 36),
    "strange": ("anomaly", 4, 22),
    "course": ("fusion", 4, 7),
}
OPERATIONS: dict[str, Operation] = {
    "classification": "classify",
    "segmentation": "segment",
    "anomaly": "anomaly",
    "fusion": "fuse",
}
CONTRACT = InputContract(SIZE, (0.5,) * 3, (0.25,) * 3, resize_mode="squash")  # the tiny checkpoint's
POINTS = [[30.0, 60.0, True], [100.0, 20.0, False]]
BOXES = [[10.0, 20.0, 90.0, 150.0]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tasks")
    backbone = open_checkpoint(write_checkpoint(place / "checkpoint", with_decoder=False)).backbone
    for name, (task, first_block, seed) in ADAPTERS.items():
        write_task(place / "adapters", backbone, name, task, first_block=first_block, seed=seed)
    return place


def open_engine(place: Path, **options: Any) -> Engine:
    return Engine.open(EngineConfig(checkpoint=str(place / "checkpoint"), adapters_dir=str(place / "adapters"), **options))


@pytest.fixture(scope="module")
def direct(place: Path) -> Direct:
    return Direct(place)


class Direct:
    """The slow truth: LoRA in plain layers, one film and one adapter at a time, no bank, no cache, no shared trunk."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.backbone = open_checkpoint(place / "checkpoint").backbone
        self._known: dict[Any, dict[str, Any]] = {}

    def __call__(self, request: Request) -> dict[str, Any]:
        assert request.film is not None
        key = (request.film.digest, request.operation, request.adapter, repr(request.options), request.texts)
        if key not in self._known:
            self._known[key] = self._answer(request, request.film, str(request.adapter))
        return self._known[key]

    @torch.no_grad()
    def _answer(self, request: Request, film: Film, name: str) -> dict[str, Any]:
        adapter = read_adapter(self.place / "adapters" / name, self.backbone)
        pixels = torch.from_numpy(normalise(film.pixels, self.backbone.contract))[None]
        load_weights(self.backbone.image_tower, adapter.lora)
        try:
            features = self.backbone.encode_image(pixels)
        finally:
            remove_lora(self.backbone.image_tower)
        contract = self.backbone.contract
        if request.operation == "classify":
            return {"probabilities": Classifier.open(adapter.card, adapter.head)(features)[0].probabilities}
        if request.operation == "segment":
            points = tuple(Point(*point) for point in request.options.get("points", ()))
            boxes = tuple(Box(*box) for box in request.options.get("boxes", ()))
            prompts = [Prompt(points, boxes)] if points or boxes else None
            (masks,) = Segmenter.open(adapter.card, adapter.head)(features, pixels, [film.extent], contract, prompts)
            return {"presence": masks.presence, "masks": masks.masks}
        if request.operation == "fuse":
            note = self.backbone.encode_text(["an effusion."])[0] if request.texts else None
            predictor = FusionPredictor.open(adapter.card, adapter.head)
            return {"fused": predictor([features], note, request.options.get("tabular"))}
        patches = self.backbone.patch_embeddings(features)
        (result,) = Detector.open(adapter.card, adapter.head)(features, patches, [film.extent], contract)
        return {"p_value": result.p_value, "branches": list(result.branches.values()), "heat": result.heat}


def film(seed: int) -> Film:
    return replace(noise_film(seed), height=EXTENT[0], width=EXTENT[1])


def questions() -> list[Request]:
    found = [Request(0, "embed_image", film=film(9))]
    for seed in range(3):
        shown = film(seed)
        found += [Request(0, "embed_image", film=shown)]
        for name, (task, _, _) in ADAPTERS.items():
            found.append(Request(0, OPERATIONS[task], adapter=name, film=shown))
        for texts, table in ((("an effusion. she died.",), {"crp": 12.0}), ((), {"sex": "F"})):
            found.append(Request(0, "fuse", adapter="course", film=shown, texts=texts, options={"tabular": table}))
        found.append(Request(0, "segment", adapter="lungs", film=shown, options={"points": POINTS, "boxes": BOXES}))
    return [replace(request, id=number) for number, request in enumerate(found, start=1)]


def check(value: Any, truth: dict[str, Any]) -> None:
    if "probabilities" in truth:
        assert np.allclose(value["probabilities"], truth["probabilities"], atol=1e-4)
    elif "fused" in truth:
        fused, found = truth["fused"], value["result"]
        assert found["probability"] == pytest.approx(fused.probability, abs=1e-4)
        assert found["present"] == list(fused.present)
        assert found["unimodal"] == pytest.approx(fused.unimodal, abs=1e-4)
        assert found["shapley"] == pytest.approx(fused.shapley, abs=1e-3)
        assert [one["modalities"] for one in found["subsets"]] == [list(one.modalities) for one in fused.subsets]
        given = [one["probability"] for one in found["subsets"]]
        assert given == pytest.approx([one.probability for one in fused.subsets], abs=1e-4)
    elif "masks" in truth:
        assert np.allclose(value["presence"], truth["presence"], atol=1e-4)
        masks = np.stack([from_rle(rle) for rle in value["masks"]])
        assert masks.shape == truth["masks"].shape
        assert np.mean(masks != truth["masks"]) < 1e-3  # a pixel at one half may fall to either side
    else:
        assert value["p_value"] == pytest.approx(truth["p_value"], abs=1e-4)
        assert np.allclose(list(value["branches"].values()), truth["branches"], atol=1e-4)
        heat = to_film(np.asarray(value["heat"], np.float32), *EXTENT, CONTRACT)
        assert np.ptp(heat) > 1e-3
        assert np.allclose(heat, truth["heat"], atol=1e-4)


def answer(outcome: Outcome) -> Any:
    assert outcome.value is not None, outcome.error_message
    return outcome.value


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixed_batch_of_all_tasks_in_any_order_equals_direct_calls(place: Path, direct: Direct, seed: int) -> None:
    engine = open_engine(place)
    requests = questions()
    random.Random(seed).shuffle(requests)
    half = len(requests) // 3
    answers = {}
    for part in (requests[:half], requests[half:]):  # the second meets what the first left in the caches
        answers |= {outcome.request_id: answer(outcome) for outcome in engine.run(Batch(tuple(part)))}
    for request in requests:
        if request.operation != "embed_image":
            check(answers[request.id], direct(request))


def test_adapters_films_and_marks_matter(place: Path, direct: Direct) -> None:
    """Guards the equality test: were all answers alike, it could not fail."""
    asked = [request for request in questions() if request.operation == "segment"]
    shown = [direct(request)["masks"] for request in asked]
    assert all((one != two).mean() > 0.01 for i, one in enumerate(shown) for two in shown[i + 1 :])
    assert all(0.002 < masks.mean() < 0.998 for masks in shown)  # marks on random weights draw nearly everything
    strange = [direct(request)["branches"] for request in questions() if request.operation == "anomaly"]
    assert len({tuple(np.round(one, 6)) for one in strange}) > 1


def test_adapters_that_begin_higher_share_the_blocks_below(place: Path) -> None:
    engine = open_engine(place, cached_film_bytes=0)
    one = film(1)
    names = ("upper", "top", "lungs", "strange")  # begin at blocks 3, 5, 3 and 4 of six
    requests = [Request(number, OPERATIONS[ADAPTERS[name][0]], adapter=name, film=one) for number, name in enumerate(names)]
    engine.run(Batch(tuple(requests)))
    engine.looks.trunk.block_rows = engine.looks.trunk.rows = 0
    engine.run(Batch(tuple(requests)))
    assert engine.trunk_rows == 4
    assert engine.looks.trunk.block_rows == 5 + 3 + 3 + 1 + 2  # the base's line ends at block 5, where the last one begins


def test_a_second_adapter_begins_where_the_film_is_held(place: Path, direct: Direct) -> None:
    engine = open_engine(place)
    trunk = engine.looks.trunk
    steps = (("a", "upper", 3 + 3), ("a", "lungs", 3), ("b", "lungs", 3 + 3), ("b", "upper", 3))
    for tenant, name, blocks in steps:  # of six; both adapters begin at block 3
        trunk.block_rows = 0
        request = Request(1, OPERATIONS[ADAPTERS[name][0]], adapter=name, film=film(1), tenant=tenant)
        (outcome,) = engine.run(Batch((request,)))
        check(answer(outcome), direct(request))
        assert trunk.block_rows == blocks, (tenant, name)


def test_a_click_on_a_film_seen_before_runs_no_trunk(place: Path, direct: Direct) -> None:
    engine = open_engine(place)
    first = Request(1, "segment", adapter="lungs", film=film(1))
    engine.run(Batch((first,)))
    before = engine.trunk_rows
    click = replace(first, options={"points": POINTS})
    (outcome,) = engine.run(Batch((click,)))
    assert engine.trunk_rows == before
    check(answer(outcome), direct(click))
    engine.run(Batch((replace(click, tenant="b"),)))
    assert engine.trunk_rows > before


def test_an_analysis_equals_its_parts(place: Path, direct: Direct) -> None:
    engine = open_engine(place)
    options = {"labels": ["mass"], "templates": ["{}"], "negatives": None, "scoring": "sigmoid"}
    tasks = [
        {"operation": "zero_shot", "options": options},
        {"operation": "classify", "adapter": "upper"},
        {"operation": "segment", "adapter": "lungs", "options": {"boxes": BOXES, "labels": ["Heart"]}},
        {"operation": "classify", "adapter": "nobody"},
        {"operation": "segment", "adapter": "upper"},
        {"operation": "anomaly", "adapter": "strange"},
        {"operation": "chat"},
    ]
    whole = Request(1, "analyze", film=film(1), options={"tasks": tasks})
    (outcome,) = engine.run(Batch((whole,)))
    parts = answer(outcome)["parts"]
    assert engine.trunk_rows == 4  # the base once, and three adapters
    assert [part.get("error", [""])[0] for part in parts] == [
        "", "", "", "adapter_not_found", "invalid_request", "", "invalid_request",
    ]  # fmt: skip
    check(parts[1], direct(Request(0, "classify", adapter="upper", film=film(1))))
    boxed = direct(Request(0, "segment", adapter="lungs", film=film(1), options={"boxes": BOXES}))
    check(parts[2], {"presence": boxed["presence"][1:], "masks": boxed["masks"][1:]})
    check(parts[5], direct(Request(0, "anomaly", adapter="strange", film=film(1))))
    (alone,) = engine.run(Batch((Request(2, "zero_shot", film=film(1), options=options),)))
    assert parts[0]["scores"] == answer(alone)["scores"]
    assert parts[0]["adapter"] is None
    assert len({part["adapter"] for part in (parts[1], parts[2], parts[5])}) == 3


def test_a_task_that_breaks_leaves_the_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(place)
    monkeypatch.setattr(Detector, "judge", lambda *_: 1 / 0)
    tasks = [{"operation": "anomaly", "adapter": "strange"}, {"operation": "classify", "adapter": "top"}]
    (outcome,) = engine.run(Batch((Request(1, "analyze", film=film(1), options={"tasks": tasks}),)))
    broken, whole = answer(outcome)["parts"]
    assert broken["error"][0] == "internal_error"
    assert len(whole["probabilities"]) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": ["spleen"], "points": [[5, 3, True]]}, "lungs, heart, chest"),
        ({"points": [[500, 3, True]]}, "120 x 200"),
        ({"points": [[5, 3, False]]}, "inside"),
        ({"boxes": [[9, 9, 3, 12]]}, "top < bottom"),
    ],
)
def test_marks_that_make_no_sense_are_said(place: Path, options: dict[str, Any], words: str) -> None:
    (outcome,) = open_engine(place).run(Batch((Request(1, "segment", adapter="lungs", film=film(1), options=options),)))
    assert outcome.error_code == "invalid_request"
    assert words in outcome.error_message


def test_a_conformal_set_holds_what_reaches_its_threshold(place: Path) -> None:
    (outcome,) = open_engine(place).run(Batch((Request(1, "classify", adapter="upper", film=film(1)),)))
    value = answer(outcome)
    reach = [p >= t for p, t in zip(value["probabilities"], (0.2, 0.5, 0.2), strict=True)]
    assert value["conformal"]["labels"] == [label for label, is_in in zip(value["labels"], reach, strict=True) if is_in]
    assert value["conformal"]["coverage"] == 0.9
    assert value["calibration"] == "platt on 10 films of 'val'"
    assert value["normal"] == pytest.approx(np.prod(1 - np.array(value["probabilities"])))


def test_fusion_takes_any_subset_and_says_what_it_cannot_read(place: Path, direct: Direct) -> None:
    engine = open_engine(place)
    alone = Request(1, "fuse", adapter="course", options={"tabular": {"crp": "inf"}})
    several = Request(2, "fuse", adapter="course", film=film(1), others=(film(2),))
    wrong = Request(3, "fuse", adapter="course", options={"tabular": {"weight": 3}})
    nothing = Request(4, "fuse", adapter="course")
    by_id = {outcome.request_id: outcome for outcome in engine.run(Batch((alone, several, wrong, nothing)))}
    assert answer(by_id[1])["result"]["present"] == ["laboratory"]
    both = answer(by_id[2])
    assert (len(both["films"]), both["result"]["present"]) == (2, ["film"])
    one = direct(Request(0, "fuse", adapter="course", film=film(1)))["fused"].probability
    assert both["result"]["probability"] != pytest.approx(one, abs=1e-4)
    assert "crp, sex" in by_id[3].error_message
    assert "film, note, laboratory" in by_id[4].error_message


def test_free_words_are_sought_by_what_they_mean_and_unions_are_their_classes_together(place: Path, direct: Direct) -> None:
    options = {"labels": ["a nodule", "Chest", "heart"]}
    (outcome,) = open_engine(place).run(Batch((Request(1, "segment", adapter="lungs", film=film(1), options=options),)))
    value = answer(outcome)
    assert (value["labels"], value["words"]) == (["a nodule", "chest", "heart"], ["a nodule"])
    truth = direct(Request(0, "segment", adapter="lungs", film=film(1)))
    words, chest, heart = (from_rle(rle) for rle in value["masks"])
    assert np.mean(chest != truth["masks"].any(axis=0)) < 1e-3
    assert np.mean(heart != truth["masks"][1]) < 1e-3
    assert value["presence"][2] == pytest.approx(truth["presence"][1], abs=1e-4)
    adapter = read_adapter(place / "adapters" / "lungs", direct.backbone)
    pixels = torch.from_numpy(normalise(film(1).pixels, CONTRACT))[None]
    load_weights(direct.backbone.image_tower, adapter.lora)
    with torch.no_grad():
        features = direct.backbone.encode_image(pixels)
        phrase = direct.backbone.encode_text(["a nodule"])[0]
    remove_lora(direct.backbone.image_tower)
    asked = Segmenter.open(adapter.card, adapter.head).ask(features, pixels, [EXTENT], CONTRACT, {"a nodule": phrase})
    assert value["presence"][0] == pytest.approx(asked[0].presence[0], abs=1e-4)
    assert np.mean(words != asked[0].masks[0]) < 1e-3
