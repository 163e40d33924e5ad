"""Evaluation end to end on made films, with a backbone that sees brightness and texts that mean it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.fake import FakeBackbone, make_fake_adapter
from adapters.files import Adapter, write_adapter
from adapters.lora import lora_layers
from adapters.store import AdapterStore
from adapters.tasks.classification import ClassificationHead
from foundation.errors import InvalidRequest
from foundation.preprocess import InputContract
from foundation.prompt import FindingState
from foundation.prompts import prompt_pair
from foundation.questions import interpret_question
from training.evaluating.box_check import boxed_section, boxed_sides
from training.evaluating.chat_check import Answer, choose_films, other_films, phantom_questions
from training.evaluating.evaluate import evaluate
from training.evaluating.job import Options
from training.evaluating.phantom_check import score_phantoms
from training.evaluating.retrieval import chance_of_film
from training.manifests.manifest import Row, load_manifest
from training.measuring import baselines
from training.measuring.classified import classify
from training.measuring.metrics import auroc
from training.measuring.scoring import Running, embed_rows, questions_of, read_rows, run_films, zero_shot
from training.pretraining.decoder.agreement import sides_in, yes_or_no, zones_in

OPTIONS = Options(phantoms=0, resamples=20, chat_films=6, chat_phantoms=3, min_count=4, batch_size=7)
GRID = 8


def quiet(_: str) -> None:
    """No log."""


class SeeingBackbone:
    """Embeds where a 64 px film is bright: axes 0 and 1 for the places of `made_films`, then one constant axis.

    A text about effusion points along axis 0, one about a mass along axis 1, the other way where it denies.
    """

    contract = InputContract(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    logit_scale, fingerprint = 10.0, "seeing"
    image_tower = torch.nn.Identity()

    def encode_image(self, pixels: Tensor) -> Any:
        level = pixels.float()[:, 0]  # (B, S, S)
        rest = level.mean((1, 2))
        seen = [
            level[:, 40:, :28].mean((1, 2)) - rest,
            level[:, 8:24, 36:56].mean((1, 2)) - rest,
            torch.ones(len(level)),
        ]
        tokens = F.adaptive_avg_pool2d(level[:, None], GRID).flatten(1)[..., None]  # (B, N, 1)
        return SimpleNamespace(embedding=F.normalize(torch.stack(seen, 1), dim=-1), tokens=tokens, grid=(GRID, GRID))

    def patch_embeddings(self, features: Any) -> Tensor:
        """Brighter patches are closer to any finding."""
        bright = features.tokens - features.tokens.amin()
        return F.normalize(torch.cat([bright, bright, torch.ones_like(bright)], -1), dim=-1)

    def encode_text(self, strings: list[str]) -> Tensor:
        return torch.stack([self._meaning(text.lower()) for text in strings])

    def _meaning(self, text: str) -> Tensor:
        sign = -1.0 if text.startswith(("no ", "there is no", "without")) or " no " in text or " without " in text else 1.0
        axis = {"effu": 0, "pleu": 0, "mass": 1}
        vector = torch.tensor([0.0, 0.0, 1.0])
        for word, place in axis.items():
            if word in text:
                vector[place] = sign
        return F.normalize(vector, dim=0)


def checkpoint(backbone: Any) -> Any:
    """As `open_checkpoint` gives it; its folder has no gate."""
    return SimpleNamespace(backbone=backbone, folder=Path("no-such-folder"), passport=SimpleNamespace(licence="Apache-2.0"))


def run(subject: str, manifest: Path | None, backbone: Any = None, **named: Any) -> Any:
    given = {"options": OPTIONS, "log": quiet} | named
    return evaluate(subject, manifest, checkpoint=checkpoint(backbone or SeeingBackbone()), **given)


# --- zero-shot -------------------------------------------------------------------------------------------------------


def test_zero_shot_finds_what_the_backbone_sees(made_films: Any, tmp_path: Path) -> None:
    report = run("zero-shot", made_films(24), report_dir=tmp_path / "report", where="source=made", command="evaluate")
    assert report.find("auroc", "effusion").value == 1.0
    assert report.find("auroc", "mass").value == 1.0
    assert report.find("auroc", "effusion", group="view=AP").value == 1.0
    assert report.find("recall@10", by="film to text").value == 1.0  # there are only eight readings
    assert 0 < report.find("recall@1", by="chance, film to text").value < 0.2
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    about = content["about"]
    assert about["data"]["films"] == 24
    assert about["data"]["filter"] == "source=made"
    assert about["checkpoint"]["fingerprint"] == "seeing"
    assert about["seed"] == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert str(tmp_path) not in page  # no path of this machine
    assert (tmp_path / "report" / "auroc-made.png").is_file()


def test_sources_are_never_pooled(made_films: Any, tmp_path: Path) -> None:
    lines = made_films(24, "one").read_text() + made_films(24, "two").read_text()
    (tmp_path / "both.jsonl").write_text(lines)
    titles = [section.title for section in run("zero-shot", tmp_path / "both.jsonl").sections]
    assert "one: telling films apart" in titles
    assert "two: telling films apart" in titles


def test_normal_is_derived_from_the_findings(made_films: Any) -> None:
    rows = load_manifest(made_films(24)).of("test")
    backbone = SeeingBackbone()
    embeddings = embed_rows(backbone, rows, Running(batch_size=5))
    scored = zero_shot(backbone, embeddings, ("effusion", "mass", "normal"))
    truth = ["normal" in row.labels for row in rows]
    assert auroc(scored.scores["normal"], truth)[0] > 0.95
    with pytest.raises(InvalidRequest, match="absence of findings"):
        prompt_pair("normal")


def test_batches_do_not_change_the_numbers(made_films: Any) -> None:
    rows = load_manifest(made_films(24)).of("test")
    one, many = (embed_rows(SeeingBackbone(), rows, Running(batch_size=size)) for size in (1, 16))
    assert torch.allclose(one, many, atol=1e-6)


def test_a_label_asked_against_another_is_asked_of_those_two_alone(made_films: Any) -> None:
    rows = load_manifest(made_films(24)).of("test")
    kinds = [("bacterial pneumonia",), ("viral pneumonia",), ("normal",)]
    rows = tuple(replace(row, labels=kinds[place % 3]) for place, row in enumerate(rows))
    [asked] = questions_of(rows, ("bacterial pneumonia", "viral pneumonia", "normal"), min_count=4)
    assert (asked.label, asked.films, asked.positives) == ("bacterial pneumonia", 16, 8)


def test_phantoms_score_sides_as_the_patient_has_them() -> None:
    report = run("zero-shot", None, options=replace(OPTIONS, phantoms=12))
    [section] = report.sections
    assert section.title.startswith("Phantoms")
    scored = score_phantoms(SeeingBackbone(), 12, Running())
    assert scored.truth.shape == scored.scores.shape == (12, 10)
    assert set(np.unique(scored.sides)) <= {"", "left", "right"}
    assert np.isnan(scored.peak_hits).sum() > 0  # absent findings have no place to point at
    assert (scored.sides != "").any()


def test_the_patients_left_is_the_right_half_of_the_film() -> None:
    from training.evaluating.phantom_check import _left_less_right

    heat = np.zeros((1, 1, 4, 5), dtype=np.float32)
    heat[..., 4] = 1.0
    assert _left_less_right(heat)[0, 0] > 0
    assert _left_less_right(heat[..., ::-1])[0, 0] < 0


def test_chance_of_retrieval_is_exact() -> None:
    assert chance_of_film(np.array([0, 0, 1]), 1) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert chance_of_film(np.array([0, 0, 1]), 3) == 1.0


# --- adapters --------------------------------------------------------------------------------------------------------


class TinyBackbone(FakeBackbone):
    """The adapters' fake with the whole input contract."""

    def __init__(self) -> None:
        super().__init__()
        self.contract = InputContract(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def adapter() -> Adapter:
    return make_fake_adapter(TinyBackbone(), "made-findings", ("effusion", "mass"), seed=1)


def test_adapter_is_measured_beside_a_baseline(made_films: Any, adapter: Adapter, tmp_path: Path) -> None:
    manifest = made_films(24)
    write_adapter(tmp_path / "store" / "made-findings", adapter)
    options = replace(OPTIONS, baselines=("hog",), baseline_cache=str(tmp_path / "kept"))
    named = {"options": options, "report_dir": tmp_path / "report", "store": AdapterStore(tmp_path / "store")}
    report = run("made-findings", manifest, TinyBackbone(), **named)
    ours, theirs = (report.find("auroc", "effusion", by=by) for by in ("made-findings", "hog"))
    gain = report.find("gain", "effusion", by="over hog")
    assert gain.value == pytest.approx(ours.value - theirs.value)
    assert theirs.value > 0.9
    assert 0 <= report.find("ece", "mass").value <= 1
    assert 0 <= report.find("sensitivity", "effusion", by="made-findings").value <= 1
    with pytest.raises(KeyError):
        report.find("sensitivity", "effusion", by="hog")  # a baseline has no thresholds of its own
    assert report.about["adapter"]["digest"]
    by_folder = run(str(tmp_path / "store" / "made-findings"), manifest, TinyBackbone())
    assert by_folder.find("auroc", "effusion").value == ours.value


def test_the_backbone_is_left_as_it_was(made_films: Any, adapter: Adapter) -> None:
    rows, backbone = load_manifest(made_films(24)).of("test"), TinyBackbone()
    before = embed_rows(backbone, rows, Running())
    scored = classify(backbone, adapter, read_rows(rows, backbone.contract), Running())
    assert not lora_layers(backbone.image_tower)
    assert torch.equal(embed_rows(backbone, rows, Running()), before)
    features = next(iter(run_films(backbone, read_rows(rows, backbone.contract), Running(batch_size=99))))
    plain = ClassificationHead(2, backbone.embed_dim, backbone.width)
    plain.load_state_dict(dict(adapter.head))
    with torch.inference_mode():
        without = plain(features).sigmoid().numpy()[:, 0]
    assert np.abs(scored.scores["effusion"] - without).max() > 1e-3  # the adapter was on while it classified


# --- chat ------------------------------------------------------------------------------------------------------------


class LookingChat:
    """Answers from the film: effusion where the lower left of the picture is bright."""

    def answer(self, film: np.ndarray, question: str) -> Answer:
        bright = float(film[40:, :28].mean()) > 140
        if "effusion" in question:
            return Answer("Yes, there is one." if bright else "No.", {"effusion": float(bright)})
        return Answer("There is an effusion." if bright else "No finding.", {"effusion": float(bright)})


class BlindChat:
    """Says the same of every film."""

    def answer(self, film: np.ndarray, question: str) -> Answer:
        return Answer("Yes, on the right, in the lower zone.", {"effusion": 0.5})


def test_a_blind_chat_is_told_from_one_that_looks(made_films: Any) -> None:
    manifest = made_films(24)
    looking = run("chat", manifest, chat=lambda _: LookingChat(), options=replace(OPTIONS, chat_films=12))
    blind = run("chat", manifest, chat=lambda _: BlindChat())
    assert looking.find("answer changed", "open question", by="shuffled").value > 0.3
    assert looking.find("largest move", "probabilities", by="blank").value > 0.3
    assert blind.find("answer changed", "open question", by="shuffled").value == 0.0
    assert blind.find("answer changed", "open question", by="blank").value == 0.0
    assert blind.find("balanced accuracy", by="real").value == 0.5  # always yes
    table = looking.sections[0].tables[0]
    assert table.columns == ("film", "labels", "real", "blank", "shuffled")
    assert len(table.rows) == 12


def test_phantom_questions_are_marked_against_the_truth() -> None:
    from foundation.phantom import make_phantom
    from training.evaluating.phantom_check import FIRST_SEED

    class Knowing:
        """Answers from the phantoms' own answers, and nothing about a blank film."""

        def __init__(self) -> None:
            phantoms = [make_phantom(FIRST_SEED + place, 64) for place in range(3)]
            self.known = {(p.film.tobytes(), one.question): one.answer for p in phantoms for one in p.questions()}

        def answer(self, film: np.ndarray, question: str) -> Answer:
            return Answer(self.known.get((film[..., 0].tobytes(), question), "I cannot tell."))

    report = run("chat", None, chat=lambda _: Knowing())
    [section] = report.sections
    assert {m.estimate.value for m in section.measures if m.by == "real" and m.estimate.value == m.estimate.value} == {1.0}
    assert report.find("balanced accuracy", by="blank").value == 0.0
    assert report.find("balanced accuracy", by="shuffled").value == 0.0


class Parrot:
    """States an effusion on the right of every film and words it by `form`."""

    stated = (FindingState("effusion", 0.31, True, "right"), FindingState("mass", 0.04, False))

    def __init__(self, form: str) -> None:
        self.form = form

    def answer(self, film: np.ndarray, question: str) -> Answer:
        asked = interpret_question(question)
        if asked.term or not set(asked.findings) <= {one.name for one in self.stated}:
            return Answer("It was not assessed on this film.", stated=self.stated)
        return Answer(self.form, stated=self.stated)


def test_answers_are_held_against_what_was_stated() -> None:
    def told(form: str) -> dict[str, float]:
        sections = phantom_questions(Parrot(form), 6, 64, resamples=20, seed=0)
        return {f"{one.name}, {one.by}": one.estimate.value for one in sections[1].measures}

    right = told("Yes. There is a pleural effusion on the right (31%).")
    assert 0 < right["yes or no, closed questions"] < 1  # yes is right of the effusion, and wrong of "is the film normal?"
    assert right["percentages, descriptions"] == right["findings named, descriptions"] == right["places, descriptions"] == 1
    assert right["says that it is not assessed, what is not stated"] == 1
    assert told("Yes. There is a pleural effusion on the right (41%).")["percentages, descriptions"] == 0
    assert told("Yes. There is a pleural effusion on the left (31%).")["places, descriptions"] == 0
    assert told("There is a pleural effusion (31%) and a lung mass (4%).")["findings named, descriptions"] == 0


@pytest.mark.parametrize(
    ("text", "yes", "sides", "zones"),
    [
        ("Yes, a small left effusion.", True, {"left"}, set()),
        ("No evidence of it.", False, set(), set()),
        ("There are nodules in both mid zones.", None, {"left", "right"}, {"middle"}),
        ("Not normal; nothing on the right upper side", None, {"right"}, {"upper"}),
    ],
)
def test_answers_are_read(text: str, yes: bool | None, sides: set[str], zones: set[str]) -> None:
    assert (yes_or_no(text), sides_in(text), zones_in(text)) == (yes, sides, zones)


def test_films_to_ask_about_are_of_different_patients(made_films: Any) -> None:
    rows = load_manifest(made_films(24)).of("test")
    chosen = choose_films(rows, 10, seed=0)
    assert len({row.patient_id for row in chosen}) == 10
    assert sum(row.labels != ("normal",) for row in chosen) == 5
    others = other_films(chosen)
    assert all(chosen[other].labels != row.labels for row, other in zip(chosen, others, strict=True))
    assert choose_films(rows, 10, seed=0) == chosen


def test_sides_are_held_against_boxes(tmp_path: Path) -> None:
    def row(number: int, label: str, *lefts: float) -> Row:
        boxes = [{"label": label, "xywh_1024": [left, 300, 100, 100]} for left in lefts]
        return Row(number, str(number), tmp_path, "test", str(number), str(number), extra={"boxes": boxes})

    rows = [row(0, "Effusion", 100), row(1, "Infiltrate", 100, 800), row(2, "Nodule", 800), row(3, "Cardiomegaly", 400)]
    assert [dict(boxed_sides(one)) for one in rows] == [
        {"effusion": {"right"}},
        {"infiltration": {"left", "right"}},
        {"nodule": {"left"}},
        {},
    ]

    class Says:
        def answer(self, film: np.ndarray, question: str) -> Answer:
            return Answer("On the right." if "nodule" not in question else "I cannot tell where.")

    films = [np.zeros((8, 8, 3), np.uint8)] * 3
    [section] = boxed_section(Says(), rows[:3], films, resamples=20, seed=0)
    told, right = (measure.estimate.value for measure in section.measures)
    assert told == pytest.approx(2 / 3)
    assert right == pytest.approx(1 / 2)
    assert boxed_section(Says(), (), (), resamples=20, seed=0) == ()


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_refused(made_films: Any, adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="unknown baseline 'svm': known are hog, cnn"):
        Options(baselines=("svm",))
    with pytest.raises(InvalidRequest, match="batch_size is 0"):
        Options(batch_size=0)
    with pytest.raises(InvalidRequest, match="nothing to measure"):
        run("zero-shot", None)
    with pytest.raises(InvalidRequest, match="no chat model"):
        run("chat", made_films(4))
    write_adapter(tmp_path / "a" / "made-findings", adapter)
    folder = str(tmp_path / "a" / "made-findings")
    with pytest.raises(InvalidRequest, match="give a manifest"):
        run(folder, None, TinyBackbone())
    with pytest.raises(InvalidRequest, match=r"for no label of made-findings \(effusion, mass\) 4 films"):
        run(folder, made_films(6), TinyBackbone())
    assert set(baselines.TITLES) == {"hog", "cnn"}
