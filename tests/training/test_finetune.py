"""Fine-tuning end to end on made films: it learns, its adapter opens and answers as it was scored, and refuses by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.bank import AdapterBank
from adapters.fake import FakeBackbone
from adapters.files import read_adapter
from adapters.store import AdapterStore
from adapters.tasks.classification import Classifier
from foundation.errors import InvalidRequest, ManifestError
from foundation.preprocess import preprocess
from foundation.readers import read_film
from training.classification import mean_auroc, patient_chances
from training.finetune import FinetuneResult, finetune
from training.finetune_recipe import DataRecipe, FinetuneRecipe, LoraRecipe, TrainingRecipe, ViewRecipe
from training.recipe import fill, read_recipe
from training.trunk_cache import TrunkCache, film_cache, to_pixels

COUNTS = {"train": 96, "val": 32, "test": 32}
SMALL = FinetuneRecipe(
    name="spots",
    lora=LoraRecipe(rank=4, alpha=8.0, first_block=1),
    training=TrainingRecipe(epochs=15, batch_size=16, lora_rate=5e-3, head_rate=5e-2, patience=15),
)


def make_film(seed: int, labels: tuple[str, ...]) -> Image.Image:
    random = np.random.default_rng(seed)
    film = random.normal(90, 12, (40, 40))
    if "left" in labels:
        film[8:20, 4:14] += 90
    if "low" in labels:
        film[28:38, 10:30] -= 70
    return Image.fromarray(np.clip(film, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films with a bright spot on the left, a dark band below, both or neither; two films a patient."""
    folder = tmp_path_factory.mktemp("films")
    lines, number = [], 0
    for split, count in COUNTS.items():
        for _ in range(count):
            labels = tuple(name for bit, name in enumerate(("left", "low")) if (number // (bit + 1)) % 2)
            make_film(number, labels).save(folder / f"{number}.png")
            row = {
                "image": f"{number}.png",
                "labels": labels or ("normal",),
                "patient_id": f"{split}{number // 2}",
                "split": split,
                "source": "made",
                "licence": "none",
                "licence_class": "permissive" if number % 8 else "nc",
            }
            lines.append(json.dumps(row))
            number += 1
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def made(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    out = tmp_path_factory.mktemp("run")
    return finetune("classification", manifest, out, SMALL, FakeBackbone(), is_quiet=True, cpu=True)


def test_it_learns_and_beats_zero_shot(made: FinetuneResult) -> None:
    values = {(metric.split, metric.name, metric.label): metric for metric in made.card.metrics}
    assert made.scores["test"] > 0.95
    assert values["test", "auroc mean", ""].value == pytest.approx(made.scores["test"], abs=1e-4)
    assert values["test", "gain over zero-shot", ""].low is not None
    assert values["test", "gain over zero-shot", ""].low > 0
    assert values["test", "auroc", "normal"].value > 0.9
    assert {"val", "test"} == {split for split, _, _ in values}


def test_the_adapter_answers_as_it_was_scored(made: FinetuneResult, manifest: Path) -> None:
    """Through the store, the bank and the one preprocess, as serving does it."""
    backbone = FakeBackbone()
    store = AdapterStore(made.adapter.parent / "store")
    adapter = read_adapter(store.add(made.adapter).folder, backbone)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "test"]
    films = [read_film((manifest.parent / row["image"]).read_bytes()) for row in rows]
    pixels = torch.stack([torch.from_numpy(preprocess(film, backbone.contract)) for film in films])
    bank = AdapterBank(backbone)
    slot = bank.install(adapter.lora)
    with torch.inference_mode(), bank.rows([slot] * len(films)):
        results = Classifier.open(adapter.card, adapter.head)(backbone.encode_image(pixels))
    truth = np.array([[label in row["labels"] for label in made.card.labels] for row in rows], dtype=np.float32)
    assert mean_auroc(np.stack([result.logits for result in results]), truth) == pytest.approx(made.scores["test"], abs=1e-6)
    assert all(0 <= p <= 1 for result in results for p in result.probabilities)
    called = np.array([[label in result.positive for label in made.card.labels] for result in results])
    assert (called == (truth > 0.5)).mean() > 0.85


def test_the_card_says_what_was_done(made: FinetuneResult) -> None:
    card = made.card
    assert (card.name, card.task, card.labels) == ("spots", "classification", ("left", "low"))
    assert card.base.fingerprint == FakeBackbone().fingerprint
    assert card.calibration.method == "platt"
    assert len(card.thresholds) == 2
    assert {(record.source, record.licence_class) for record in card.data} == {("made", "permissive"), ("made", "nc")}
    assert sum(record.films for record in card.data) == COUNTS["train"] + COUNTS["val"]
    report = json.loads((made.adapter.parent / "report.json").read_text())
    assert report["films"] == COUNTS
    assert "gain over zero-shot" in (made.adapter.parent / "report.md").read_text()


def test_the_backbone_is_given_back_as_it_was(manifest: Path, tmp_path: Path) -> None:
    backbone = FakeBackbone()
    before = {name: tensor.clone() for name, tensor in backbone.image_tower.state_dict().items()}
    recipe = replace(SMALL, training=replace(SMALL.training, epochs=1))
    finetune("classification", manifest, tmp_path, recipe, backbone, is_quiet=True, cpu=True)
    after = backbone.image_tower.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_licence_classes_and_clauses_choose_rows(manifest: Path, tmp_path: Path) -> None:
    data = DataRecipe(licence_classes=("permissive",), labels=("low",))
    recipe = replace(SMALL, data=data, training=replace(SMALL.training, epochs=1), views=ViewRecipe(cached=0))
    result = finetune(
        "classification", manifest, tmp_path, recipe, FakeBackbone(), where="source=made", is_quiet=True, cpu=True
    )
    assert result.card.labels == ("low",)
    assert {record.licence_class for record in result.card.data} == {"permissive"}


@pytest.mark.parametrize("kind", ["vit", "visformer"])
@pytest.mark.parametrize("block", [0, 1])
def test_cached_features_equal_the_whole_tower(tmp_path: Path, manifest: Path, kind: str, block: int) -> None:
    backbone = FakeBackbone(kind)
    paths = sorted(manifest.parent.glob("*.png"))[:6]
    films = film_cache(paths, backbone.contract, tmp_path, is_quiet=True)
    options = {"first_block": block, "views": 2, "strength": SMALL.views.strength, "seed": 0, "is_quiet": True}
    tower = backbone.image_tower
    cache = TrunkCache.build(tower, backbone.fingerprint, films, backbone.contract, tmp_path, **options)
    from foundation.towers import TrunkState

    with torch.inference_mode():
        state = TrunkState(cache.state(range(6), [0] * 6).float(), cache.grid)
        upper = tower.finish(tower.run(state, block)).embedding
        whole = tower(to_pixels(np.asarray(films), backbone.contract)).embedding
    scale = float(whole.abs().max())
    torch.testing.assert_close(upper / scale, whole / scale, atol=3e-3, rtol=0)  # the cache is float16
    assert not np.array_equal(cache.hidden[:, 0], cache.hidden[:, 1])  # the second view is another
    again = TrunkCache.build(tower, backbone.fingerprint, films, backbone.contract, tmp_path, **options)
    assert np.array_equal(again.hidden, cache.hidden)
    assert len(list(tmp_path.glob("trunk-*.npy"))) == 1


def test_cached_films_are_the_one_preprocess(tmp_path: Path) -> None:
    backbone = FakeBackbone()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 30, 3), dtype=np.uint8)).save(tmp_path / "colour.png")
    make_film(0, ("left",)).save(tmp_path / "grey.png")
    for names, channels in ((["grey.png"], 1), (["grey.png", "colour.png"], 3)):
        films = film_cache([tmp_path / name for name in names], backbone.contract, tmp_path, is_quiet=True)
        assert films.shape == (len(names), 32, 32, channels)
        for name, pixels in zip(names, to_pixels(np.asarray(films), backbone.contract), strict=True):
            expected = preprocess(read_film((tmp_path / name).read_bytes()), backbone.contract)
            np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-6)


def test_multi_class(manifest: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    single = [line | {"image": str(manifest.parent / line["image"])} for line in lines if line["labels"] in (["left"], ["low"])]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, single)))
    recipe = replace(SMALL, data=DataRecipe(multi_label=False), training=replace(SMALL.training, epochs=30, patience=30))
    result = finetune("classification", tmp_path / "m.jsonl", tmp_path / "out", recipe, FakeBackbone(), is_quiet=True, cpu=True)
    assert result.card.calibration.method == "temperature"
    assert not result.card.is_multi_label
    assert result.scores["test"] > 0.9
    with pytest.raises(ManifestError, match="not exactly one of the labels"):
        finetune("classification", manifest, tmp_path / "two", recipe, FakeBackbone(), is_quiet=True, cpu=True)


def test_patients_are_balanced() -> None:
    chances = patient_chances(["a", "a", "a", "a", "b"], 1.0)
    assert chances[-1] == pytest.approx(0.5)
    assert patient_chances(["a", "a", "a", "a", "b"], 0.0).tolist() == pytest.approx([0.2] * 5)


def test_the_bundled_recipe_reads() -> None:
    recipe = read_recipe("cxr-findings", FinetuneRecipe)
    assert recipe.name == "cxr-findings"
    assert len(recipe.data.labels) == 13
    assert set(recipe.data.licence_classes) == {"permissive", "attribution"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "x1", "mood": 1}, "unknown key 'mood'"),
        ({"name": "x1", "lora": {"ranks": 4}}, "unknown key 'ranks'"),
        ({"name": "x1", "training": {"loss": "hinge"}}, "'hinge'"),
        ({"name": "x1", "data": {"labels": ["normal"]}}, "absence of the labels"),
        ({}, "missing key name"),
    ],
)
def test_odd_recipes_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        fill(FinetuneRecipe, values, "recipe")


def test_odd_requests_are_refused(manifest: Path, tmp_path: Path, made: FinetuneResult) -> None:
    def run(recipe: FinetuneRecipe = SMALL, out: Path = tmp_path, task: str = "classification", **options: object) -> None:
        finetune(task, manifest, out, recipe, FakeBackbone(), is_quiet=True, cpu=True, **options)

    with pytest.raises(InvalidRequest, match="label 'hernia'"):
        run(replace(SMALL, data=DataRecipe(labels=("left", "hernia"))))
    with pytest.raises(InvalidRequest, match="task 'telepathy'"):
        run(task="telepathy")
    with pytest.raises(InvalidRequest, match="is for classification, not for segmentation"):
        run(task="segmentation")
    with pytest.raises(InvalidRequest, match="unknown field 'sauce'"):
        run(where="sauce=made")
    with pytest.raises(InvalidRequest, match="already holds 'spots'"):
        run(out=made.adapter.parent)
    with pytest.raises(InvalidRequest, match="first_block is 7"):
        run(replace(SMALL, lora=LoraRecipe(first_block=7)))
    with pytest.raises(InvalidRequest, match="adapter name"):
        run(replace(SMALL, name="../x"))
