"""The engine against direct model calls: every operation, mixed batches, any order; and what happens when an item fails."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LABELS, noise_film, write_checkpoint, write_findings

from adapters.files import read_adapter
from adapters.lora import load_weights, remove_lora
from adapters.tasks.classification import Classifier
from foundation.checkpoint import open_checkpoint
from foundation.decoder import Decoder
from foundation.gate import GateVerdict
from foundation.places import UNKNOWN, place_of
from foundation.preprocess import normalise
from foundation.prompt import FindingState, Turn
from foundation.relevance import relevance_maps
from serving.config import EngineConfig
from serving.engine import Engine
from serving.messages import Batch, ChatTurn, Film, Outcome, Request, Sampling
from serving.prompts import finding_prompts

TEMPLATES = ["{}", "there is {}"]
ZERO_SHOT = {"labels": ["effusion", "mass"], "templates": TEMPLATES, "negatives": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    backbone = open_checkpoint(write_checkpoint(place / "checkpoint")).backbone
    write_findings(place / "adapters", backbone, "cxr-findings", seed=5)
    write_findings(place / "adapters", backbone, "other", seed=6)
    return place


@pytest.fixture
def engine(place: Path) -> Engine:
    return Engine.open(EngineConfig(checkpoint=str(place / "checkpoint"), adapters_dir=str(place / "adapters")))


@pytest.fixture(scope="module")
def direct(place: Path) -> Direct:
    return Direct(place)


class Direct:
    """The slow truth: the model called by hand, one request at a time, LoRA in plain layers, no bank, no cache."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.backbone = open_checkpoint(place / "checkpoint").backbone

    @torch.no_grad()
    def __call__(self, request: Request) -> list[float]:
        if request.operation == "embed_text":
            return self.backbone.encode_text(list(request.texts)).flatten().tolist()
        assert request.film is not None
        if request.operation == "classify":
            return self._classify(request.film, str(request.adapter))
        embedding = self._look(request.film).embedding
        if request.operation == "embed_image":
            return embedding[0].tolist()
        return self._zero_shot(embedding, request.options)

    def _look(self, film: Film) -> Any:
        return self.backbone.encode_image(torch.from_numpy(normalise(film.pixels, self.backbone.contract))[None])

    def _zero_shot(self, embedding: torch.Tensor, options: Any) -> list[float]:
        def mean(label: str) -> torch.Tensor:
            rows = [self.backbone.encode_text([template.format(label)])[0] for template in options["templates"]]
            return torch.nn.functional.normalize(torch.stack(rows).mean(0), dim=0)

        logits = self.backbone.logits(embedding, torch.stack([mean(label) for label in options["labels"]]))[0]
        if options["scoring"] == "softmax":
            return logits.softmax(0).tolist()
        if options["scoring"] == "sigmoid":
            return logits.sigmoid().tolist()
        against = options["negatives"] or [f"no {label}" for label in options["labels"]]
        denied = self.backbone.logits(embedding, torch.stack([mean(label) for label in against]))[0]
        return torch.stack([logits, denied]).softmax(0)[0].tolist()

    def _classify(self, film: Film, name: str) -> list[float]:
        adapter = read_adapter(self.place / "adapters" / name, self.backbone)
        load_weights(self.backbone.image_tower, adapter.lora)
        try:
            features = self._look(film)
        finally:
            remove_lora(self.backbone.image_tower)
        return list(Classifier.open(adapter.card, adapter.head)(features)[0].probabilities.tolist())


def mixed() -> list[Request]:
    """Every operation that answers at once, two adapters, films that recur."""
    films = [noise_film(seed) for seed in range(4)]
    scorings = ("softmax", "sigmoid", "pairwise")
    found = [Request(0, "embed_text", texts=("an effusion", "no mass"))]
    for film in films:
        found += [
            Request(0, "embed_image", film=film),
            Request(0, "classify", adapter="cxr-findings", film=film),
            Request(0, "classify", adapter="other", film=film),
            *(Request(0, "zero_shot", film=film, options={**ZERO_SHOT, "scoring": scoring}) for scoring in scorings),
        ]
    return [replace(request, id=number) for number, request in enumerate(found, start=1)]


def numbers(outcome: Outcome) -> list[float]:
    assert outcome.value is not None, outcome.error_message
    value = outcome.value
    if "embeddings" in value:
        return list(np.ravel(value["embeddings"]))
    return list(value.get("probabilities") or value["scores"])


def chat(number: int, film: int, question: str = "is there an effusion?", **sampling: Any) -> Request:
    options = Sampling(**{"max_tokens": 10, **sampling})
    return Request(number, "chat", film=noise_film(film), turns=(ChatTurn("user", question),), sampling=options)


def written(outcomes: list[Outcome], number: int) -> str:
    return "".join(o.value["delta"] for o in outcomes if o.request_id == number and o.value and "delta" in o.value)


def finish(engine: Engine) -> list[Outcome]:
    outcomes = []
    while engine.generating:
        outcomes += engine.generate()
    return outcomes


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixed_batch_in_any_order_equals_direct_calls(engine: Engine, direct: Direct, seed: int) -> None:
    requests = mixed()
    random.Random(seed).shuffle(requests)
    answers = {outcome.request_id: numbers(outcome) for outcome in engine.run(Batch(tuple(requests)))}
    assert len(answers) == len(requests)
    for request in requests:
        assert np.allclose(answers[request.id], direct(request), atol=1e-4), request.operation


def test_films_and_adapters_matter(engine: Engine) -> None:
    """Guards the equality test: were all answers alike, it could not fail."""
    by_id = {outcome.request_id: numbers(outcome) for outcome in engine.run(Batch(tuple(mixed())))}
    classified = [by_id[request.id] for request in mixed() if request.operation == "classify"]
    assert all(not np.allclose(one, two, atol=1e-3) for i, one in enumerate(classified) for two in classified[i + 1 :])


def test_one_film_asked_many_things_runs_once_for_each_adapter(engine: Engine) -> None:
    film = noise_film(1)
    requests = tuple(replace(request, film=film) if request.film else request for request in mixed())
    engine.run(Batch(requests))
    assert engine.trunk_rows == 3  # the base and two adapters


def test_chats_written_together_equal_the_decoder_alone(engine: Engine, direct: Direct, place: Path) -> None:
    asked = [chat(1, 1), chat(2, 2, "where is the mass?"), chat(3, 1, temperature=1.0, seed=7)]
    requests = [replace(request, options={"maps": True}) for request in asked]
    assert engine.run(Batch(tuple(requests))) == []
    outcomes = finish(engine)
    decoder = Decoder.load(place / "checkpoint")
    for request in requests:
        assert request.film is not None
        probabilities = direct(Request(0, "classify", adapter="cxr-findings", film=request.film))
        last = next(o.value for o in outcomes if o.request_id == request.id and o.is_final)
        assert last is not None
        states = []
        for shown, probability, threshold in zip(last["evidence"]["maps"], probabilities, (0.4, 0.6, 0.5), strict=True):
            likeness = shown["low"] + np.array(shown["grid"]) * (shown["high"] - shown["low"])
            is_present = probability >= threshold
            place = place_of(shown["label"], likeness) if is_present else UNKNOWN
            states.append(FindingState(shown["label"], probability, is_present, place.side, place.zone))
        told = [(one["side"], one["zone"]) for one in last["evidence"]["findings"]]
        assert told == [(state.side, state.zone) for state in states]
        states.sort(key=lambda state: (not state.is_present, -state.probability))
        with torch.no_grad():
            tokens = direct._look(request.film).tokens[0]
        alone = decoder.generate([Turn("user", request.turns[0].text)], states, tokens, request.sampling)
        assert written(outcomes, request.id) == alone.text
        assert last["finish_reason"] == alone.finish_reason
        assert last["usage"] == {
            "prompt_tokens": alone.prompt_tokens,
            "completion_tokens": alone.completion_tokens,
        }
        found = [finding["probability"] for finding in last["evidence"]["findings"]]
        assert np.allclose(found, probabilities, atol=1e-4)


def test_a_chats_evidence_is_whole(engine: Engine) -> None:
    *_, last = engine.answer(chat(1, 3, "where is the nodule?"))
    assert last.value is not None
    evidence = last.value["evidence"]
    grid = np.array(evidence["heatmap"]["grid"])
    assert evidence["heatmap"]["label"] == "nodule"
    assert grid.shape == (10, 10)
    assert grid.min() == 0.0
    assert grid.max() == 1.0
    assert 0.0 <= evidence["reliance"] <= 1.0
    assert last.value["provenance"]["adapter"]


def test_maps_asked_for_equal_a_direct_computation(engine: Engine, direct: Direct) -> None:
    request = replace(chat(1, 3, "where is the nodule?"), options={"maps": True})
    *_, last = engine.answer(request)
    assert last.value is not None
    evidence = last.value["evidence"]
    assert [one["label"] for one in evidence["maps"]] == list(LABELS)
    assert evidence["heatmap"] == evidence["maps"][LABELS.index("nodule")]
    assert request.film is not None
    with torch.no_grad():
        tower = direct.backbone.image_tower
        tokens = direct._look(request.film).tokens[0]
        patches = torch.cat([tower.embed_patches(token[None, None]) for token in tokens])[:, 0]
        patches = patches / patches.norm(dim=1, keepdim=True)
        for shown in evidence["maps"]:
            sides = [direct.backbone.encode_text(list(texts)).mean(0) for texts in finding_prompts(shown["label"])]
            yes, no = (side / side.norm() for side in sides)
            expected = ((patches @ yes) - (patches @ no)).reshape(10, 10).numpy()
            found = shown["low"] + np.array(shown["grid"]) * (shown["high"] - shown["low"])
            assert np.ptp(expected) > 1e-3
            assert np.allclose(found, expected, atol=1e-4 * np.ptp(expected) + 1e-6)


def test_maps_by_another_method_equal_that_method(engine: Engine, direct: Direct) -> None:
    request = replace(chat(1, 3, "where is the nodule?"), options={"maps": True, "map_method": "legrad"})
    *_, last = engine.answer(request)
    assert last.value is not None
    assert request.film is not None
    pixels = torch.from_numpy(normalise(request.film.pixels, direct.backbone.contract))
    for shown in last.value["evidence"]["maps"]:
        assert shown["method"] == "legrad"
        with torch.no_grad():
            sides = [direct.backbone.encode_text(list(texts)).mean(0) for texts in finding_prompts(shown["label"])]
        yes, no = (side / side.norm() for side in sides)
        expected = relevance_maps(direct.backbone, pixels, (yes - no)[None], "legrad")[0].numpy()
        found = shown["low"] + np.array(shown["grid"]) * (shown["high"] - shown["low"])
        assert np.allclose(found, expected, atol=1e-3 * np.ptp(expected) + 2e-6)


def test_a_method_that_is_not_known_is_refused_before_anything_runs(engine: Engine) -> None:
    (only,) = engine.answer(replace(chat(1, 3, "where is the nodule?"), options={"map_method": "guesswork"}))
    assert only.error_code == "invalid_request"
    assert "dense, gradcam, layercam, legrad" in only.error_message


def test_maps_are_only_made_when_asked_for(engine: Engine) -> None:
    *_, last = engine.answer(chat(1, 3, "where is the nodule?"))
    assert last.value is not None
    assert last.value["evidence"]["maps"] is None


def test_a_chat_without_a_film_has_no_evidence(engine: Engine) -> None:
    request = replace(chat(1, 1), film=None)
    *_, last = engine.answer(request)
    assert last.value is not None
    assert last.value["evidence"] is None


def test_without_a_findings_adapter_findings_are_zero_shot(place: Path) -> None:
    engine = Engine.open(EngineConfig(checkpoint=str(place / "checkpoint"), adapters_dir=str(place / "nothing")))
    *_, last = engine.answer(chat(1, 1))
    assert last.value is not None
    assert len(last.value["evidence"]["findings"]) == 13
    assert last.value["provenance"]["adapter"] is None


def test_a_cancelled_chat_says_no_more(engine: Engine) -> None:
    engine.run(Batch((chat(1, 1), chat(2, 2))))
    engine.generate()
    assert engine.cancel(1)
    assert not engine.cancel(1)
    assert {outcome.request_id for outcome in finish(engine)} == {2}


def test_a_chat_past_its_deadline_is_told(engine: Engine) -> None:
    engine.run(Batch((replace(chat(1, 1), deadline=0.0),)))
    (outcome,) = engine.generate()
    assert outcome.error_code == "deadline_exceeded"
    assert engine.generating == 0


def test_stop_strings_end_a_chat(engine: Engine) -> None:
    plain = list(engine.answer(chat(1, 1)))
    word = written(plain, 1).split()[0]
    stopped = list(engine.answer(chat(2, 1, stop=(word,))))
    assert written(stopped, 2) == ""
    assert stopped[-1].value is not None
    assert stopped[-1].value["finish_reason"] == "stop"


def test_only_the_poison_item_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trunk that breaks on one film, as a kernel would: seven of eight are answered."""
    poison = noise_film(99)
    black = torch.from_numpy(normalise(poison.pixels, engine.backbone.contract))
    embed = engine.backbone.image_tower.embed

    def breaks(pixels: torch.Tensor) -> Any:
        if any(torch.equal(row, black) for row in pixels):
            raise RuntimeError("a secret in a library's text")
        return embed(pixels)

    monkeypatch.setattr(engine.backbone.image_tower, "embed", breaks)
    films = [noise_film(seed) for seed in range(7)]
    films.insert(3, poison)
    requests = tuple(Request(number, "embed_image", film=film) for number, film in enumerate(films))
    outcomes = {outcome.request_id: outcome for outcome in engine.run(Batch(requests))}
    assert [number for number, outcome in outcomes.items() if outcome.is_error] == [3]
    assert outcomes[3].error_code == "internal_error"
    assert "secret" not in outcomes[3].error_message
    assert len(outcomes) == 8


def test_a_poisoned_batch_begins_no_chat_twice(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.backbone, "logit_scale", float("nan"))
    bad = Request(1, "zero_shot", film=noise_film(1), options={**ZERO_SHOT, "scoring": "sigmoid"})
    outcomes = engine.run(Batch((chat(2, 2), bad)))
    assert [outcome.error_code for outcome in outcomes] == ["internal_error"]
    assert engine.generating == 1
    assert sum(outcome.is_final for outcome in finish(engine)) == 1


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        (Request(1, "classify", adapter="nobody", film=noise_film(1)), "adapter_not_found", "nobody"),
        (Request(1, "classify", film=noise_film(1)), "invalid_request", "adapter"),
        (Request(1, "embed_image"), "invalid_request", "film"),
        (Request(1, "embed_image", adapter="other", film=noise_film(1)), "invalid_request", "other"),
        (Request(1, "embed_image", film=Film(np.zeros((8, 8, 3), np.uint8), "0")), "invalid_request", "160"),
        (Request(1, "zero_shot", film=noise_film(1), options={**ZERO_SHOT, "scoring": "odd"}), "invalid_request", "odd"),
        (
            Request(1, "zero_shot", film=noise_film(1), options={**ZERO_SHOT, "scoring": "pairwise", "negatives": ["a"]}),
            "invalid_request",
            "negatives",
        ),
    ],
)
def test_what_is_wrong_with_one_is_said_and_its_neighbour_is_answered(
    engine: Engine, wrong: Request, code: str, words: str
) -> None:
    good = Request(2, "embed_image", film=noise_film(2))
    outcomes = {outcome.request_id: outcome for outcome in engine.run(Batch((wrong, good)))}
    assert outcomes[1].error_code == code
    assert words in outcomes[1].error_message
    assert not outcomes[2].is_error


class CtOnly:
    """A gate that lets films in and CT out."""

    def assess(self, vector: Any, pixels: Any, modality: str = "") -> GateVerdict:
        return GateVerdict(modality != "CT", "a CT slice" if modality == "CT" else "", 0.0)


def gated(engine: Engine) -> Engine:
    engine._tools = replace(engine._tools, gate=CtOnly())  # type: ignore[arg-type]
    return engine


def test_a_film_outside_is_not_assessed_and_gets_no_number(engine: Engine) -> None:
    ct = noise_film(1, modality="CT")
    zero_shot = Request(1, "zero_shot", film=ct, options={**ZERO_SHOT, "scoring": "softmax"})
    classify = Request(2, "classify", adapter="other", film=ct)
    inside = replace(classify, id=3, film=noise_film(1))
    values = {o.request_id: o.value for o in gated(engine).run(Batch((zero_shot, classify, inside)))}
    assert None not in values.values()
    assert (values[1]["assessed"], values[1]["looks_like"], values[1]["scores"]) == (False, "a CT slice", [])
    assert (values[2]["assessed"], values[2]["probabilities"], values[2]["logits"]) == (False, [], [])
    assert values[3]["assessed"]
    assert len(values[3]["probabilities"]) == len(LABELS)


def test_a_chat_about_a_film_outside_is_answered_without_the_decoder(engine: Engine) -> None:
    request = replace(chat(1, 1), film=noise_film(1, modality="CT"))
    outcomes = list(gated(engine).answer(request))
    assert written(outcomes, 1).startswith("Not assessed: this looks like a CT slice.")
    assert outcomes[-1].value is not None
    evidence = outcomes[-1].value["evidence"]
    assert not evidence["assessed"]
    assert evidence["findings"] == []
    assert evidence["reliance"] is None


def test_texts_are_encoded_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    encode = engine.backbone.encode_text

    def counts(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return encode(texts)

    monkeypatch.setattr(engine.backbone, "encode_text", counts)
    requests = tuple(Request(n, "zero_shot", film=noise_film(n), options={**ZERO_SHOT, "scoring": "softmax"}) for n in (1, 2))
    engine.run(Batch(requests))
    engine.run(Batch(requests))
    assert sorted(asked) == sorted({template.format(label) for template in TEMPLATES for label in ("effusion", "mass")})


def test_more_adapters_than_places_still_answer_right(place: Path, direct: Direct, tmp_path: Path) -> None:
    engine = Engine.open(EngineConfig(checkpoint=str(place / "checkpoint"), adapters_dir=str(place / "adapters"), adapters=1))
    for number in range(3):
        for name in ("cxr-findings", "other"):
            request = Request(number, "classify", adapter=name, film=noise_film(number))
            (outcome,) = engine.run(Batch((request,)))
            assert np.allclose(numbers(outcome), direct(request), atol=1e-4)


def test_a_new_adapter_in_the_store_answers_without_a_restart(place: Path, tmp_path: Path) -> None:
    engine = Engine.open(EngineConfig(checkpoint=str(place / "checkpoint"), adapters_dir=str(tmp_path)))
    request = Request(1, "classify", adapter="late", film=noise_film(1))
    assert engine.run(Batch((request,)))[0].error_code == "adapter_not_found"
    write_findings(tmp_path, engine.backbone, "late", seed=9)
    assert not engine.run(Batch((request,)))[0].is_error


def test_without_a_decoder_chat_is_refused_and_the_rest_works(tmp_path: Path) -> None:
    engine = Engine.open(EngineConfig(checkpoint=str(write_checkpoint(tmp_path / "plain", with_decoder=False))))
    assert not engine.facts.can_chat
    (outcome,) = engine.run(Batch((chat(1, 1),)))
    assert outcome.error_code == "invalid_request"
    assert "decoder" in outcome.error_message
    engine.check()


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_other_precisions_answer_nearly_the_same(place: Path, direct: Direct, precision: Any) -> None:
    engine = Engine.open(EngineConfig(checkpoint=str(place / "checkpoint"), precision=precision))
    assert engine.precision in ("float32", "bfloat16")
    request = Request(1, "embed_image", film=noise_film(1))
    assert np.allclose(numbers(engine.run(Batch((request,)))[0]), direct(request), atol=0.1)
