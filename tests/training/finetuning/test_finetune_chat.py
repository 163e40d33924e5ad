"""The chat task end to end on made films and a tiny decoder: examples, loop, card, peft, report, refusals."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import LlamaForCausalLM

from adapters.lora import load_weights, remove_lora
from adapters.store import AdapterStore
from adapters.tasks.chat import CANNOT_TELL, open_chat_adapter
from foundation.checkpoint import open_checkpoint
from foundation.decoder import Decoder
from foundation.errors import InvalidRequest, ManifestError
from foundation.sampling import Sampling
from foundation.tiny import make_tiny_checkpoint
from foundation.tiny_decoder import make_tiny_decoder
from training.evaluating.evaluate import evaluate
from training.evaluating.job import Options
from training.finetuning.chat.films import shelve
from training.finetuning.chat.finetune import ChatDataRecipe, ChatRecipe, ChatViewRecipe, MadeRecipe, chat_rows
from training.finetuning.chat.lessons import Course, Draw, TwinRecipe, balanced_weights, false_premises, sentence, stack, write
from training.finetuning.chat.scores import MAX_TOKENS, ChatScores, answer_all, majority
from training.finetuning.chat.stated import FilmReader
from training.finetuning.chat.trainee import AdaptedDecoder, ChatTrainee
from training.finetuning.finetune import finetune
from training.finetuning.job import FinetuneResult
from training.finetuning.recipe import LoraRecipe, PaceRecipe
from training.manifests.manifest import load_manifest
from training.manifests.qa import QaRow, read_questions
from training.measuring.scoring import read_rows
from training.recipe import read_recipe

SMALL = ChatRecipe(
    "small-chat",
    data=ChatDataRecipe(findings=""),
    twins=TwinRecipe(0.15, 0.15, 0.1),
    views=ChatViewRecipe(count=2),
    lora=LoraRecipe(rank=4, alpha=8.0),
    training=PaceRecipe(epochs=3, batch_size=8, lora_rate=1e-2),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a decoder, and films of which a bright corner means an effusion."""
    place = tmp_path_factory.mktemp("chat")
    backbone = open_checkpoint(make_tiny_checkpoint(place / "checkpoint")).backbone
    make_tiny_decoder(place / "checkpoint", image_width=backbone.width)
    random, lines = np.random.default_rng(0), []
    for number in range(20):
        has_effusion = number % 2 == 0
        film = random.integers(40, 90, (64, 64))
        film[40:, :28] += 130 * has_effusion
        Image.fromarray(film.astype(np.uint8)).save(place / f"{number}.png")
        qa = [
            {"question": "Is there an effusion?", "answer": "Yes" if has_effusion else "No", "question_type": "PRES"},
            {"question": "Where is the heart?", "answer": "left", "answer_type": "OPEN", "question_type": "POS"},
        ]
        split = "train" if number < 12 else "val" if number < 16 else "test"
        line = {"image": f"{number}.png", "patient_id": f"p{number}", "split": split, "qa": qa, "licence": "CC0"}
        lines.append(json.dumps({**line, "licence_class": "permissive"}))
    (place / "manifest.jsonl").write_text("\n".join(lines))
    return place


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    out = tmp_path_factory.mktemp("run")
    return finetune("chat", place / "manifest.jsonl", out, SMALL, str(place / "checkpoint"), is_quiet=True, cpu=True)


def pairs_of(place: Path, split: str = "train") -> tuple[QaRow, ...]:
    return read_questions(load_manifest(place / "manifest.jsonl").of(split))


def test_it_learns_and_keeps_the_best_epoch(made: FinetuneResult) -> None:
    losses = [epoch["loss"] for epoch in made.loop.history]
    assert min(losses[1:]) < losses[0] - 0.05
    assert made.loop.best_value == pytest.approx(min(losses))
    assert made.measure == "closed accuracy"
    assert set(made.scores) == {"val", "test"}


def test_the_card_names_both_bases_data_and_figures(made: FinetuneResult, place: Path) -> None:
    card = made.card
    decoder = Decoder.load(place / "checkpoint")
    assert (card.task, card.labels) == ("chat", ("pos", "pres"))
    assert card.base.decoder == decoder.fingerprint
    assert card.base.fingerprint == open_checkpoint(place / "checkpoint").backbone.fingerprint
    assert [(record.films, record.licence_class) for record in card.data] == [(16, "permissive")]
    names = {metric.name for metric in card.metrics if metric.split == "test"}
    assert {"closed accuracy", "closed accuracy, majority answer", "open token F1, base decoder"} <= names
    assert {"likelier of yes and no, blank film", "margin over its own blank film"} <= names
    assert (made.adapter.parent / "report.md").is_file()


def test_it_opens_in_plain_peft_with_equal_logits_and_every_tensor_moved(made: FinetuneResult, place: Path) -> None:
    backbone = open_checkpoint(place / "checkpoint").backbone
    decoder = Decoder.load(place / "checkpoint")
    adapter = open_chat_adapter(made.adapter, backbone, decoder)
    assert all(bool(pair.B.any()) for pair in adapter.lora.pairs.values())
    assert len(adapter.lora.pairs) == len(decoder.lora_targets())
    load_weights(decoder.model, adapter.lora)
    theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(place / "checkpoint" / "decoder"), made.adapter)
    ids = torch.arange(12, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(ids).logits, decoder.model(ids).logits, atol=1e-5, rtol=1e-5)


def test_the_report_says_what_the_picture_is_worth(made: FinetuneResult, place: Path, tmp_path: Path) -> None:
    options = Options(resamples=50, min_count=2)
    checkpoint = str(place / "checkpoint")
    store = AdapterStore(tmp_path / "store")
    store.add(made.adapter)
    report = evaluate(
        "small-chat", place / "manifest.jsonl", "test", None, tmp_path, checkpoint, options, store=store, log=lambda _: None
    )
    for by in ("adapter", "majority answer", "base decoder", "blank film", "shuffled film"):
        assert 0.0 <= report.find("closed accuracy", "PRES", by=by).value <= 1.0
    assert report.find("closed accuracy", "all", by="majority answer").value == 0.5
    closed = next(m.value for m in made.card.metrics if (m.name, m.split) == ("closed accuracy", "test"))
    assert report.find("closed accuracy", "all", by="adapter").value == pytest.approx(closed, abs=1e-4)
    assert report.find("token F1", by="adapter").value >= 0.0
    assert "cannot tell" in (tmp_path / "report.md").read_text()


def test_answers_of_a_batch_are_those_of_the_server_one_by_one(place: Path) -> None:
    backbone, decoder = open_checkpoint(place / "checkpoint").backbone, Decoder.load(place / "checkpoint")
    rows = load_manifest(place / "manifest.jsonl").of("test")
    reader = FilmReader(backbone, None)
    shelves = shelve(rows, list(read_rows(rows, backbone.contract)), reader)
    reader.close()
    pairs = read_questions(rows)
    seen = [shelves[pair.film.id].of("real") for pair in pairs]
    together = answer_all(decoder, pairs, seen)
    for pair, film, said in zip(pairs, seen, together, strict=True):
        alone = decoder.generate(pair.turns, film.findings, film.tokens, Sampling(max_tokens=MAX_TOKENS))
        assert said.text == alone.text
        assert (said.yes_probability is not None) is pair.is_closed
    assert len({said.text for said in together}) > 1


def test_draws_are_balanced_and_twins_have_their_share(place: Path) -> None:
    pairs = pairs_of(place)[:6] * 40 + pairs_of(place)[6:8] * 4  # mostly one answer
    course = Course(pairs, 2, TwinRecipe(0.1, 0.2, 0.1), 0.75, seed=1, premises=false_premises(pairs, 0))
    draws = course.draws(0)
    assert course.draws(0) == draws != course.draws(1)
    count = Counter(draw.twin for draw in draws)
    share = {name: count[name] / len(pairs) for name in ("blank", "shuffled", "false premise")}
    assert share == pytest.approx({"blank": 0.1, "shuffled": 0.2, "false premise": 0.1}, abs=0.01)
    weights = balanced_weights(pairs, 0.75)
    mass = {"yes": 0.0, "no": 0.0, "left": 0.0}
    for pair, weight in zip(pairs, weights, strict=True):
        mass[pair.truth] += weight
    assert mass == pytest.approx({"yes": 0.375, "no": 0.375, "left": 0.25})


def test_yes_and_no_are_drawn_as_they_were_answered_if_asked(place: Path) -> None:
    yes, no = (next(pair for pair in pairs_of(place) if pair.truth == truth) for truth in ("yes", "no"))
    pairs = (yes,) * 10 + (no,) * 30
    for evenness, share in ((0.0, 0.25), (0.5, 0.375), (1.0, 0.5)):
        weights = balanced_weights(pairs, 1.0, evenness)
        assert sum(weights[:10]) == pytest.approx(share)
        assert sum(weights) == pytest.approx(1.0)


def test_made_questions_join_the_draws_in_their_share(place: Path) -> None:
    pairs, made = pairs_of(place) * 10, pairs_of(place, "val")
    course = Course(pairs, 2, TwinRecipe(0.1, 0.0, 0.0), 0.5, seed=1, made=made, made_share=0.6)
    draws = course.draws(0)
    of_made = [draw for draw in draws if draw.pair >= len(pairs)]
    real = sum(draw.twin == "real" for draw in draws)
    assert len(of_made) / real == pytest.approx(0.6, abs=0.01)
    assert {(draw.twin, draw.view) for draw in of_made} == {("real", 0)}
    assert {course.asked(draw) for draw in of_made} == set(made)
    assert all(course.asked(draw) in pairs for draw in draws if draw.pair < len(pairs))


def test_labelled_films_that_nobody_asked_about_join_the_lessons(place: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (place / "manifest.jsonl").read_text().splitlines()]
    silent = {"licence": "CC BY", "licence_class": "attribution"}
    for number, line in enumerate([*lines[:4], *lines[12:14]]):  # four of train, two of val
        told = {"labels": [("effusion", "normal")[number % 2]], "id": f"silent{number}"}
        lines.append({**line, **silent, **told})
        del lines[-1]["qa"]
    for line in lines:
        line["image"] = str(place / line["image"])
    (tmp_path / "manifest.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    recipe = replace(SMALL, made=MadeRecipe(films=3, questions=50), training=PaceRecipe(epochs=1, batch_size=8, lora_rate=1e-2))
    manifest = load_manifest(tmp_path / "manifest.jsonl")
    kept = chat_rows(manifest, recipe)
    assert sum(row.id.startswith("silent") for row in kept) == 3
    assert len(chat_rows(manifest, SMALL)) == 20
    checkpoint = str(place / "checkpoint")
    made = finetune("chat", tmp_path / "manifest.jsonl", tmp_path / "out", recipe, checkpoint, is_quiet=True, cpu=True)
    assert [(record.films, record.licence_class) for record in made.card.data] == [(3, "attribution"), (16, "permissive")]
    assert made.card.labels == ("pos", "pres")
    with pytest.raises(InvalidRequest, match=r"made\.films"):
        MadeRecipe(share=1.0)


def test_false_premises_rest_on_what_the_answers_deny(place: Path) -> None:
    pairs = pairs_of(place)
    denied = [one for one in false_premises(pairs, 0) if "effusion" in one.question]
    assert {one.film.truth for one in denied} == {"no"}
    assert len(denied) == sum(pair.truth == "no" for pair in pairs)
    assert all(one.answer.endswith(CANNOT_TELL) for one in false_premises(pairs, 0))


def test_twins_are_shown_without_the_film_and_taught_to_decline(place: Path) -> None:
    backbone, decoder = open_checkpoint(place / "checkpoint").backbone, Decoder.load(place / "checkpoint")
    rows = load_manifest(place / "manifest.jsonl").of("val")
    reader = FilmReader(backbone, None)
    shelves = shelve(rows, list(read_rows(rows, backbone.contract)), reader)
    pairs = read_questions(rows)
    trainee = ChatTrainee(decoder, Course(pairs, 1, TwinRecipe(), 0.5, 0), pairs, shelves, 4)
    real, blank, shuffled = (trainee._written(Draw(0, twin)) for twin in ("real", "blank", "shuffled"))
    shelf = shelves[pairs[0].film.id]
    assert torch.equal(blank.tokens, shelf.of("blank").tokens)
    assert torch.equal(shuffled.tokens, shelf.of("shuffled").tokens)
    assert not torch.equal(real.tokens, blank.tokens)
    declined = decoder.tokenizer.encode_plain(CANNOT_TELL)
    assert blank.ids[-len(declined) - 1 : -1] == shuffled.ids[-len(declined) - 1 : -1] == declined
    assert real.ids == write(decoder, pairs[0].turns, shelf.of("real"), sentence(pairs[0].answer)).ids


def test_only_the_answers_tokens_are_learnt_and_only_lora_moves(place: Path) -> None:
    backbone, decoder = open_checkpoint(place / "checkpoint").backbone, Decoder.load(place / "checkpoint")
    rows = load_manifest(place / "manifest.jsonl").of("val")
    shelves = shelve(rows, list(read_rows(rows, backbone.contract)), FilmReader(backbone, None))
    written = [write(decoder, pair.turns, shelves[pair.film.id].of("blank"), "yes .") for pair in read_questions(rows)[:3]]
    batch = stack(written, 0)
    model = AdaptedDecoder(decoder, LoraRecipe(rank=2))
    _, targets = model(batch)
    assert targets.tolist() == [*decoder.tokenizer.encode_plain("yes ."), decoder.end_id] * 3
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(name.endswith(("lora_A", "lora_B")) for name in learning)
    model.release()
    remove_lora(decoder.model)


def test_majority_speaks_by_kind(place: Path) -> None:
    pairs = pairs_of(place)
    learnt = [replace(pair, kind="SIZE", answer="no") if number < 3 else pair for number, pair in enumerate(pairs)]
    asked = (replace(pairs[0], kind="SIZE"), replace(pairs[0], kind="NEW"))
    said = majority(asked, [*learnt, *learnt[:3]])
    assert [result.text for result in said] == ["no", "no"]
    scores = ChatScores(asked, said)
    assert scores.closed.tolist() == [0.0, 0.0]


def test_what_cannot_be_trained_is_refused(place: Path, tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "mute")
    manifest = place / "manifest.jsonl"
    with pytest.raises(InvalidRequest, match="has no decoder"):
        finetune("chat", manifest, tmp_path / "a", SMALL, str(tmp_path / "mute"), is_quiet=True, cpu=True)
    with pytest.raises(ManifestError, match="No row of split 'val'"):
        finetune("chat", manifest, tmp_path / "b", SMALL, str(place / "checkpoint"), where="split=train", is_quiet=True)
    with pytest.raises(InvalidRequest, match="shares of twins"):
        TwinRecipe(0.5, 0.5, 0.1)
    with pytest.raises(InvalidRequest, match=r"data\.closed"):
        replace(SMALL, data=ChatDataRecipe(closed=2.0))
    assert read_recipe("cxr-questions", ChatRecipe).name == "cxr-questions"
