"""Fusion end to end on made cases: an adapter that opens and answers, outcomes that never leak, a report of every subset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_cases import RECIPE, write_cases

from adapters.fake import FakeBackbone
from adapters.files import read_adapter
from adapters.lora import load_weights, remove_lora
from adapters.tasks.account import subsets_of
from adapters.tasks.fusion import FusionPredictor
from adapters.tasks.outcomes import remove_outcomes
from foundation.errors import InvalidRequest, ManifestError
from foundation.preprocess import preprocess
from foundation.readers import read_film
from training.evaluating.fusion_check import fusion_sections
from training.finetuning.finetune import finetune
from training.finetuning.fusion.data import read_cases
from training.finetuning.fusion.recipe import FusionRecipe
from training.finetuning.job import FinetuneResult
from training.manifests.manifest import load_manifest
from training.measuring.asked import Asked
from training.measuring.scoring import Running
from training.recipe import fill, read_recipe

MODALITIES = ("film", "note", "laboratory", "patient")
Trained = tuple[Path, FinetuneResult]


def recipe(**changes: Any) -> FusionRecipe:
    """changes: keys of a table of the recipe, such as data={"case": "id"}."""
    values = {name: value | changes.get(name, {}) if isinstance(value, dict) else value for name, value in RECIPE.items()}
    return fill(FusionRecipe, values, "the test's recipe")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("fusion")
    manifest = write_cases(folder)
    return folder, finetune("fusion", manifest, folder / "out", recipe(), FakeBackbone(), is_quiet=True, cpu=True)


def open_trained(result: FinetuneResult) -> tuple[FusionPredictor, Any]:
    backbone = FakeBackbone()
    adapter = read_adapter(result.adapter, backbone)
    load_weights(backbone.image_tower, adapter.lora)
    return FusionPredictor.open(adapter.card, adapter.head), backbone


def test_the_folder_opens_and_answers_any_subset(trained: Trained) -> None:
    folder, result = trained
    predictor, backbone = open_trained(result)
    row = json.loads((folder / "manifest.jsonl").read_text().splitlines()[2])
    pixels = preprocess(read_film((folder / row["image"]).read_bytes()), backbone.contract)
    features = backbone.encode_image(torch.as_tensor(pixels)[None] if pixels.ndim == 3 else torch.as_tensor(pixels))
    remove_lora(backbone.image_tower)
    note = backbone.encode_text(["Severe opacities."])
    table = {"crp": 100.0, "ldh": "inf", "sex": "M"}
    answer = predictor([features], note, table)
    assert answer.present == MODALITIES
    assert len(answer.subsets) == 15
    by_subset = {subset.modalities: subset.probability for subset in answer.subsets}
    for subset in subsets_of(MODALITIES):
        kept = {name: cell for name, cell in table.items() if ("patient" if name == "sex" else "laboratory") in subset}
        alone = predictor([features] if "film" in subset else [], note if "note" in subset else None, kept)
        assert alone.probability == pytest.approx(by_subset[subset], abs=1e-5)
    assert sum(answer.shapley.values()) == pytest.approx(answer.logit - predictor.prior_logit)


def test_the_stored_head_answers_as_the_figures_were_measured(trained: Trained) -> None:
    """Training's inputs and scores, and the predictor on a film read from disk, are one and the same."""
    folder, result = trained
    predictor, backbone = open_trained(result)
    cases = [case for case in read_cases(load_manifest(folder / "manifest.jsonl").rows, recipe().data) if case.split == "test"]
    answers = []
    for case in cases:
        pixels = preprocess(read_film(case.rows[0].image.read_bytes()), backbone.contract)
        features = backbone.encode_image(torch.as_tensor(pixels)[None] if pixels.ndim == 3 else torch.as_tensor(pixels))
        note = None if case.note is None else backbone.encode_text([case.note])
        answers.append(predictor([features], note, case.table).probability)
    told = np.array([case.truth for case in cases])
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, i in zip(answers, told, strict=True)
        for b, j in zip(answers, told, strict=True)
        if i > j
    ]
    assert np.mean(pairs) == pytest.approx(result.scores["test"])


def test_what_can_be_learnt_is_learnt_and_no_subset_is_harmed(trained: Trained) -> None:
    _, result = trained
    held = {(metric.name, metric.label): metric for metric in result.card.metrics if metric.split == "held back"}
    assert held["auroc", "film"].value > 0.8
    assert held["auroc", "all that is known"].value > 0.8
    gaps = [metric.value for (name, _), metric in held.items() if name == "no-harm gap"]
    assert len(gaps) == 11
    assert min(gaps) > -1e-9
    assert held["auroc", "film"].low is not None
    assert held["auroc", "film"].films == 48
    for rule in result.card.head["rules"]:
        assert rule["method"] in (*rule["modalities"], "product", "joint")


def test_the_report_tells_every_subset_and_the_grid(trained: Trained) -> None:
    folder, _ = trained
    report = json.loads((folder / "out" / "report.json").read_text())
    labels = {m["label"] for section in report["sections"] for m in section["measures"] if m["name"] == "auroc"}
    assert {" + ".join(subset) for subset in subsets_of(MODALITIES)} <= labels
    makers = {measure["by"] for section in report["sections"] for measure in section["measures"]}
    assert {"best single", "product", "joint", "chosen", "boosting, zeros", "boosting, NaN"} <= makers
    grid = next(section for section in report["sections"] if section["title"].startswith("What is missing"))
    assert [len(table["rows"]) for table in grid["tables"]] == [4, 4]
    words = (folder / "out" / "report.md").read_text()
    assert "Few rows" in words
    assert "Shapley" in words
    assert str(folder) not in words


def test_the_finished_adapter_is_evaluated_alike(trained: Trained) -> None:
    """`vesalius evaluate` on the folder gives the figures that training wrote for the same split."""
    folder, result = trained
    backbone = FakeBackbone()
    adapter = read_adapter(result.adapter, backbone)
    manifest = load_manifest(folder / "manifest.jsonl")
    sections = fusion_sections(Asked(backbone, adapter, manifest, "test", Running(), 50, 0))  # type: ignore[arg-type]
    again = {(m.label, m.by): m.estimate.value for m in sections[0].measures}
    before = {m.label: m.value for m in result.card.metrics if m.split == "test" and m.name == "auroc"}
    for subset in (("film",), ("film", "laboratory"), MODALITIES):
        assert again[" + ".join(subset), "chosen"] == pytest.approx(before[" + ".join(subset)], abs=1e-4)
    assert "boosting, zeros" in {m.by for section in sections for m in section.measures}


def test_the_card_describes_its_fields(trained: Trained) -> None:
    _, result = trained
    crp, ldh, sex = result.card.head["fields"]
    assert (crp["name"], crp["unit"], crp["low"], crp["high"]) == ("crp", "mg/L", 0.0, 1000.0)
    assert 0 < crp["seen_low"] < crp["seen_high"] <= 1000
    assert (ldh["seen_low"], ldh["seen_high"]) == (250.0, 310.0)
    assert sex["categories"] in (("F", "M"), ["F", "M"])
    assert result.card.conformal.coverage == 0.9
    assert 0 < result.card.thresholds[0] < 1


def test_the_same_seed_gives_the_same_adapter(trained: Trained, tmp_path: Path) -> None:
    folder, result = trained
    again = finetune("fusion", folder / "manifest.jsonl", tmp_path, recipe(), FakeBackbone(), is_quiet=True, cpu=True)
    assert again.card.files == result.card.files
    assert again.scores == result.scores


# --- what may be known -----------------------------------------------------------------------------------------------


def test_a_value_from_after_the_film_is_not_known(tmp_path: Path) -> None:
    late = {"tabular": {"ward_offset": 2.0, "crp": 400.0, "crp_offset": 1.0, "ldh": "300", "death_offset": 9.0}}
    same_day = {"tabular": {"ward_offset": None, "crp": 400.0, "crp_offset": 0.0, "ldh": "-inf"}}
    manifest = load_manifest(write_cases(tmp_path, 4, **{"0": late, "1": same_day}))
    first, second = read_cases(manifest.rows, recipe().data)[:2]
    assert first.truth
    assert first.table["crp"] is None
    assert first.table["ldh"] == 300.0
    assert not second.truth
    assert second.table["crp"] == 400.0
    assert second.table["ldh"] == float("-inf")
    assert all("offset" not in name for name in first.table)


def test_a_row_without_the_outcomes_column_tells_nothing(tmp_path: Path) -> None:
    """Films of other sources in the same manifest are not cases in which the outcome did not come."""
    elsewhere = {"tabular": {"crp": 5.0, "crp_offset": 0.0}}
    manifest = load_manifest(write_cases(tmp_path, 4, **{"0": elsewhere}))
    assert manifest.rows[0].id not in {case.rows[0].id for case in read_cases(manifest.rows, recipe().data)}
    assert len(read_cases(manifest.rows, recipe().data)) == 3


def test_notes_lose_what_states_the_outcome(tmp_path: Path) -> None:
    manifest = load_manifest(
        write_cases(tmp_path, 3, **{"0": {"text": "Cough. Died in the ICU."}, "1": {"text": "Intubated."}})
    )
    cases = read_cases(manifest.rows, recipe().data)
    assert (cases[0].note, cases[0].removed) == ("Cough.", 1)
    assert (cases[1].note, cases[1].removed) == (None, 1)


def test_rows_of_a_case_are_one_patient_with_several_films(tmp_path: Path) -> None:
    path = write_cases(tmp_path, 6)
    cases = read_cases(load_manifest(path).rows, recipe(data={"case": "patient_id"}).data)
    assert [len(case.rows) for case in cases] == [2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcome": {"label": "ill", "column": "ward"}}, "'ward'"),
        ({"field": [{"name": "crq"}]}, "'crq'"),
        ({"field": [{"name": "ward_offset"}]}, "'ward_offset'.*outcome"),
        ({"field": [{"name": "death_offset"}]}, "'death_offset'.*outcome"),
        ({"field": [{"name": "crp"}, {"name": "crp"}]}, "twice"),
        ({"field": [{"name": "crp", "kind": "colour"}]}, "'crp'.*kind"),
        ({"field": [{"name": "crp", "modality": "film"}]}, "'crp'.*modality"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        finetune("fusion", write_cases(tmp_path), tmp_path / "out", recipe(data=changes), FakeBackbone(), is_quiet=True)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"crp": "high", "crp_offset": 0.0}, "Row 1.*'crp'"),
        ({"crp": -5.0, "crp_offset": 0.0}, "Row 1.*0 to 1000"),
        ({"crp": 5.0, "crp_offset": "today"}, "Row 1.*'crp_offset'"),
    ],
)
def test_a_bad_cell_names_its_row(tmp_path: Path, table: dict[str, Any], words: str) -> None:
    manifest = load_manifest(write_cases(tmp_path, 4, **{"0": {"tabular": table | {"ward_offset": 1.0}}}))
    with pytest.raises(ManifestError, match=words):
        read_cases(manifest.rows, recipe().data)


def test_too_few_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="folds"):
        finetune("fusion", write_cases(tmp_path), tmp_path / "out", recipe(head={"folds": 20}), FakeBackbone(), is_quiet=True)


def test_the_bundled_recipe_reads_and_names_its_outcome() -> None:
    bundled = read_recipe("covid-course", FusionRecipe)
    assert bundled.data.outcome.column == "icu_admission_offset"
    assert {"icu_release_offset", "death_offset"} <= set(bundled.data.outcomes)
    assert bundled.data.modalities == ("film", "laboratory", "demographics")
    assert all(field.known_by for field in bundled.data.field if field.modality == "laboratory")
    assert replace(bundled.data, field=()).modalities == ("film",)


def test_the_rule_is_the_one_serving_uses() -> None:
    assert remove_outcomes("Fever. He died.").text == "Fever."
