"""Anomaly detection end to end: lesions are found, roles never share a patient, p holds on films never seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.fake import FakeBackbone
from adapters.files import read_adapter
from adapters.lora import load_weights, remove_lora
from adapters.store import AdapterStore
from adapters.tasks.anomaly import Detector
from foundation.checkpoint import open_checkpoint
from foundation.errors import AdapterRefused, InvalidRequest, ManifestError
from foundation.preprocess import preprocess
from foundation.readers import read_film
from foundation.tiny import make_tiny_checkpoint
from training.evaluating.evaluate import evaluate
from training.evaluating.job import Options
from training.finetuning.anomaly.finetune import AnomalyHeadRecipe, AnomalyRecipe, AnomalyViews, NormalDataRecipe, anomaly_rows
from training.finetuning.anomaly.scores import gradient_distance, pixel_error
from training.finetuning.anomaly.split import assign_roles
from training.finetuning.anomaly.trainee import ABNORMAL, NORMAL, SYNTHETIC, choose_weights, with_lesions
from training.finetuning.finetune import finetune
from training.finetuning.job import FinetuneResult
from training.finetuning.recipe import LoraRecipe, PaceRecipe
from training.manifests.manifest import load_manifest
from training.measuring.baselines import TITLES
from training.measuring.metrics import auroc
from training.recipe import fill, read_recipe

SMALL = AnomalyRecipe(
    "spots",
    lora=LoraRecipe(rank=4, alpha=8.0, first_block=1),
    head=AnomalyHeadRecipe(findings=("mass", "effusion"), memory=256, memory_width=32),
    views=AnomalyViews(synthetic=0.2),
    training=PaceRecipe(epochs=6, batch_size=16, lora_rate=2e-3, head_rate=1e-2, patience=6),
)
COUNTS = {"train": 80, "val": 100, "test": 80}


class Patched(FakeBackbone):
    def patch_embeddings(self, features: object) -> torch.Tensor:
        return torch.nn.functional.normalize(self.image_tower.embed_patches(features.tokens), dim=-1)  # type: ignore[attr-defined]


def make_film(number: int, is_ill: bool) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Soft stripes, the same in every film but for noise and brightness; an ill one has a ring somewhere."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:64, :64]
    film = 110 + 30 * np.sin(x / 6) + random.normal(0, 6, (64, 64)) + random.uniform(-15, 15)
    place = (int(random.integers(14, 50)), int(random.integers(14, 50))) if is_ill else None
    if place:
        film[np.abs(np.hypot(y - place[0], x - place[1]) - 7) < 3.5] += 90
    return np.clip(film, 0, 255).astype(np.uint8), place


def write(folder: Path, counts: dict[str, int], *, ill_every: dict[str, int] | None = None) -> Path:
    """`ill_every`: every n-th film of a split is ill; two films a patient."""
    every = {"train": 4, "val": 2, "test": 2} if ill_every is None else ill_every
    lines: list[dict[str, object]] = []
    for split, count in counts.items():
        for _ in range(count):
            number = len(lines)
            is_ill = bool(every.get(split)) and number // 2 % every[split] == 0
            film, place = make_film(number, is_ill)
            Image.fromarray(film).save(folder / f"{number}.png")
            line: dict[str, object] = {"image": f"{number}.png", "split": split, "age": 5 if number % 16 == 7 else 40}
            line |= {"labels": ["ring"] if is_ill else ["normal"]}
            if place and split == "test":
                line["boxes"] = [{"label": "ring", "xywh": [place[1] - 10, place[0] - 10, 20, 20]}]
            lines.append(line | {"patient_id": f"{split}{number // 2}", "source": "made", "licence_class": "permissive"})
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("films"), COUNTS)


@pytest.fixture(scope="module")
def made(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    out = tmp_path_factory.mktemp("run")
    return finetune("anomaly", manifest, out, SMALL, FakeBackbone("visformer"), is_quiet=True, cpu=True)


def value(made: FinetuneResult, name: str, split: str = "test") -> float:
    return next(m.value for m in made.card.metrics if (m.name, m.split) == (name, split))


def test_it_finds_what_is_strange(made: FinetuneResult) -> None:
    assert made.scores["test"] > 0.9
    assert value(made, "auroc trained") > 0.8
    assert value(made, "auroc memory") > 0.7
    assert value(made, "auroc") == pytest.approx(made.scores["test"], abs=1e-4)
    assert value(made, "gain over gradient distance") > -1


def test_p_holds_on_normal_films_never_seen(made: FinetuneResult) -> None:
    assert value(made, "alarms at p 0.05, normal") <= 0.2  # 40 films, of 20 patients
    assert value(made, "alarms at p 0.05, abnormal") > 0.4


def test_the_adapter_answers_as_it_was_scored(made: FinetuneResult, manifest: Path, tmp_path: Path) -> None:
    base = Patched("visformer")
    adapter = read_adapter(AdapterStore(tmp_path / "store").add(made.adapter).folder, base)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "test"]
    films = [read_film((manifest.parent / row["image"]).read_bytes()) for row in rows]
    pixels = torch.stack([torch.from_numpy(preprocess(film, base.contract)) for film in films])
    load_weights(base.image_tower, adapter.lora)
    with torch.inference_mode():
        features = base.encode_image(pixels)
        results = Detector.open(adapter.card, adapter.head)(
            features, base.patch_embeddings(features), [(64, 64)] * len(films), base.contract
        )
    remove_lora(base.image_tower)
    p = np.array([result.p_value for result in results])
    is_ill = np.array([row["labels"] == ["ring"] for row in rows])
    assert (p[is_ill] <= 0.05).mean() == pytest.approx(value(made, "alarms at p 0.05, abnormal"), abs=1e-4)
    ranks = []
    for row, result in zip(rows, results, strict=True):
        place = make_film(int(Path(row["image"]).stem), row["labels"] == ["ring"])[1]
        if place:
            ranks.append((result.heat <= result.heat[place]).mean())
    assert np.mean(ranks) > 0.65  # by chance 0.5: the ring's place is hotter than most of its film


def test_the_folder_refuses(made: FinetuneResult) -> None:
    with pytest.raises(AdapterRefused, match="was made for the base"):
        read_adapter(made.adapter, FakeBackbone("visformer", seed=1))
    assert made.card.labels == ("anomaly",)
    count = made.card.head["reference"]
    assert 20 <= count <= 30  # half of the fifty normal films of `val`, whole patients
    assert any(limit.startswith(f"p-values rest on {count} held-out normal films") for limit in made.card.limits)


def test_the_report(made: FinetuneResult, manifest: Path, tmp_path: Path) -> None:
    opened = SimpleNamespace(backbone=Patched("visformer"), folder=Path("no-such-folder"), passport=SimpleNamespace(licence=""))
    options = Options(resamples=20, min_count=5, baselines=("hog",), baseline_cache=str(tmp_path / "kept"))
    given = {"report_dir": tmp_path / "report", "checkpoint": opened, "options": options, "log": lambda _: None}
    report = evaluate(str(made.adapter), manifest, **given)
    assert report.find("auroc", "anomaly", by="fusion").value == pytest.approx(made.scores["test"], abs=2e-3)
    for by in ("text", "memory", "reconstruction", "trained", "pixel PCA", "gradient distance", TITLES["hog"]):
        assert 0 <= report.find("auroc", "anomaly", by=by).value <= 1
    assert (tmp_path / "report" / "p-values-made.png").is_file()
    assert (tmp_path / "report" / "films-made.png").is_file()
    assert report.find("auroc", "8 normal films", by="memory").value > 0.5
    assert report.find("hits", by="fusion").value > report.find("hits", by="random place").value
    assert report.find("hits", by="random place").value == pytest.approx(400 / 64**2, abs=0.03)


@pytest.mark.parametrize("layout", ["biomedclip"])
def test_a_handful_of_normal_films_on_another_checkpoint(layout: str, tmp_path: Path) -> None:
    """Twelve normal films and nothing else: lesions are synthetic, and the card says so."""
    manifest = write(tmp_path, {"train": 12}, ill_every={})
    folder = make_tiny_checkpoint(tmp_path / "checkpoint", layout)
    recipe = replace(SMALL, lora=LoraRecipe(rank=2, alpha=4.0), training=replace(SMALL.training, epochs=1))
    result = finetune("anomaly", manifest, tmp_path / "out", recipe, str(folder), is_quiet=True, cpu=True)
    adapter = read_adapter(result.adapter, open_checkpoint(str(folder)).backbone)
    assert Detector.open(adapter.card, adapter.head).reference.scores.shape == (4, 4)
    assert set(result.scores) == {"val"}
    assert any("No abnormal film was learnt from" in limit for limit in result.card.limits)
    assert any("synthetic lesions" in limit for limit in result.card.limits)


def test_children_and_films_kept_for_the_report_never_learn(manifest: Path, tmp_path: Path) -> None:
    rows = load_manifest(manifest)
    recipe = replace(SMALL, data=NormalDataRecipe(least_age=18, held_out="boxes"))
    kept = anomaly_rows(rows, recipe)
    children = [row for row in rows if row.get("age") == 5]
    assert children
    assert len(kept) == len(rows) - len(children)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        line |= {"image": str(manifest.parent / line["image"]), "boxes": [{"label": "ring", "xywh": [1, 1, 4, 4]}]}
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert {row.split for row in anomaly_rows(load_manifest(tmp_path / "m.jsonl"), recipe)} == {"test"}


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [{"train": 40, "val": 100}, {"train": 20, "val": 4}, {"train": 24}])
def test_no_patient_has_two_roles(counts: dict[str, int], tmp_path: Path) -> None:
    rows = load_manifest(write(tmp_path, counts))
    roles = assign_roles(rows, lambda row: "normal" in row.labels, use_abnormal=True)

    def patients(rows: Sequence[object]) -> set[str]:
        return {row.patient_id for row in rows}  # type: ignore[attr-defined]

    learn, choose, reference = patients(roles.train), patients(roles.choose), patients(roles.reference)
    assert learn
    assert choose
    assert reference
    assert not learn & choose
    assert not learn & reference
    assert not choose & reference
    assert not (patients(roles.train_abnormal) | patients(roles.choose_abnormal)) & reference
    assert not patients(roles.train_abnormal) & (choose | patients(roles.choose_abnormal))


def test_a_patient_with_both_kinds_of_films_stays_in_one_role(tmp_path: Path) -> None:
    """Every patient has a normal and an ill film, so wherever the normal one measures, the ill one may not teach."""
    path = write(tmp_path, {"train": 48}, ill_every={})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps(line | {"labels": [("normal", "ring")[n % 2]]}) for n, line in enumerate(lines)))
    roles = assign_roles(load_manifest(path), lambda row: "normal" in row.labels, use_abnormal=True)
    learn, held = (
        {row.patient_id for row in roles.train_abnormal},
        {row.patient_id for row in (*roles.choose, *roles.reference)},
    )
    assert learn
    assert not learn & held


def test_too_few_normal_films_are_refused(tmp_path: Path) -> None:
    rows = load_manifest(write(tmp_path, {"train": 8}))
    with pytest.raises(ManifestError, match="give at least 6"):
        assign_roles(rows, lambda row: "normal" in row.labels, use_abnormal=True)
    with pytest.raises(ManifestError, match="normal films of 0 patients"):
        assign_roles(rows, lambda row: "healthy" in row.labels, use_abnormal=True)


def test_weights_follow_the_branch_that_knows() -> None:
    random = np.random.default_rng(0)
    is_ill = np.arange(200) % 2 == 0
    scores = random.normal(size=(200, 3))
    scores[:, 1] += 3 * is_ill
    weights = choose_weights(scores, is_ill, [str(number) for number in range(200)])
    assert weights.tolist() == [0.0, 1.0, 0.0]


def test_branches_that_few_films_cannot_tell_apart_count_alike() -> None:
    random = np.random.default_rng(1)
    is_ill = np.arange(60) % 2 == 0
    scores = random.normal(size=(60, 3)) + 1.2 * is_ill[:, None]
    scores[:, 2] = random.normal(size=60)
    weights = choose_weights(scores, is_ill, [str(number // 2) for number in range(60)])
    assert weights[0] == weights[1] == 1.0
    assert weights[2] == 0.0


def test_a_branch_little_behind_counts_and_one_clearly_behind_does_not() -> None:
    is_ill, patients = np.arange(400) % 2 == 0, [str(number) for number in range(400)]
    scores = np.random.default_rng(3).normal(size=(400, 3)) + np.array([1.0, 0.85, 0.3]) * is_ill[:, None]
    gap = auroc(scores[:, 0], is_ill)[0] - auroc(scores[:, 1], is_ill)[0]
    assert gap > 0.035  # more than one standard error (0.03), less than two
    assert choose_weights(scores, is_ill, patients).tolist() == [1.0, 1.0, 0.0]


def test_the_trained_branch_reads_every_level(made: FinetuneResult) -> None:
    widths = [level.shape[1] for level in FakeBackbone("visformer").encode_image(torch.zeros(1, 3, 64, 64)).levels]
    head = read_adapter(made.adapter, FakeBackbone("visformer")).head
    assert made.card.head["read_widths"] == widths
    assert made.card.head["read_pools"] == list(SMALL.head.pools)
    assert head["reader.linear.weight"].shape == (1, sum(widths) * len(SMALL.head.pools))
    assert head["reader.linear.weight"].abs().max() > 0


def test_synthetic_films_hold_lesions() -> None:
    contract = FakeBackbone("visformer").contract
    normals = np.stack([make_film(number, False)[0][..., None] for number in range(4)])
    films, masks = with_lesions(normals, 10, contract, SMALL.views.strength, seed=0, lesions=8)
    assert films.shape == (10, 64, 64, 1)
    assert masks.any(axis=(1, 2)).all()
    assert masks.mean() < 0.8
    again, _ = with_lesions(normals, 10, contract, SMALL.views.strength, seed=0, lesions=8)
    assert np.array_equal(films, again)
    assert len({NORMAL, SYNTHETIC, ABNORMAL}) == 3


def test_baselines_see_what_is_plain() -> None:
    normals = np.stack([make_film(number, False)[0][..., None] for number in range(60)])
    asked = np.stack([make_film(1000 + number, number % 2 == 0)[0][..., None] for number in range(20)])
    for baseline in (pixel_error, gradient_distance):
        scores = baseline(normals, asked)
        assert scores[::2].mean() > scores[1::2].mean()


def test_odd_recipes_are_refused(manifest: Path, tmp_path: Path) -> None:
    assert read_recipe("cxr-anomaly", AnomalyRecipe).data.normal == "normal"
    with pytest.raises(InvalidRequest, match=r"views\.cached"):
        fill(AnomalyRecipe, {"name": "x1", "views": {"cached": 0}}, "recipe")
    with pytest.raises(InvalidRequest, match=r"head\.findings"):
        fill(AnomalyRecipe, {"name": "x1", "head": {"findings": []}}, "recipe")
    recipe = replace(SMALL, data=NormalDataRecipe(normal="healthy"))
    with pytest.raises(ManifestError, match="normal films of 0 patients"):
        finetune("anomaly", manifest, tmp_path, recipe, FakeBackbone("visformer"), is_quiet=True, cpu=True)
    high = replace(SMALL, lora=LoraRecipe(first_block=2))
    with pytest.raises(InvalidRequest, match="can be at most 1"):
        finetune("anomaly", manifest, tmp_path, high, FakeBackbone("visformer", depth=3), is_quiet=True, cpu=True)
