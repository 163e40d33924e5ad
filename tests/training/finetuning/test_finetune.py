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
from adapters.lora import remove_lora
from adapters.store import AdapterStore
from adapters.tasks.classification import Classifier
from foundation.errors import InvalidRequest, ManifestError
from foundation.preprocess import preprocess
from foundation.readers import read_film
from training.finetuning.classification.label_table import LabelTable
from training.finetuning.classification.trainee import AdaptedClassifier, mean_auroc, patient_chances
from training.finetuning.finetune import FinetuneResult, finetune
from training.finetuning.recipe import (
    DataRecipe,
    FinetuneRecipe,
    HeadRecipe,
    LabelGroup,
    LoraRecipe,
    TrainingRecipe,
    ViewRecipe,
)
from training.finetuning.trunk_cache import TrunkCache, film_cache, to_pixels
from training.manifests.manifest import load_manifest
from training.measuring.classified import classified
from training.measuring.scoring import Running, read_rows
from training.recipe import fill, read_recipe

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


def test_it_learns_at_further_sizes_and_mirrored_and_is_scored_as_it_answers(manifest: Path, tmp_path: Path) -> None:
    recipe = replace(
        SMALL,
        lora=LoraRecipe(rank=2, alpha=4.0, first_block=3),
        head=HeadRecipe(pools=("mean", "max"), sizes=(96, 32), size_pools=("mean",), mirrored=True),
        views=ViewRecipe(cached=1),
        training=TrainingRecipe(epochs=2, batch_size=16, lora_rate=1e-3, head_rate=1e-3),
    )
    backbone = FakeBackbone("resnet")
    done = finetune("classification", manifest, tmp_path, recipe, backbone, is_quiet=True, cpu=True)
    assert done.scores["test"] > 0.8
    adapter = read_adapter(done.adapter, backbone)
    assert (adapter.card.head["sizes"], adapter.card.head["is_mirrored"]) == ([96, 32], True)
    rows = load_manifest(manifest).of("test")
    results = list(classified(backbone, adapter, read_rows(rows, backbone.contract), Running()))
    truth = np.array([[label in row.labels for label in adapter.card.labels] for row in rows], np.float32)
    again = mean_auroc(np.stack([result.logits for result in results]), truth)
    assert again == pytest.approx(done.scores["test"], abs=2e-3)
    for kind, sizes in (("vit", (64,)), ("resnet", (50,))):
        wrong = replace(recipe, name="odd", lora=LoraRecipe(first_block=1), head=HeadRecipe(sizes=sizes))
        with pytest.raises(InvalidRequest, match=r"one size only|multiples of 32"):
            finetune("classification", manifest, tmp_path / kind, wrong, FakeBackbone(kind), is_quiet=True, cpu=True)
    with pytest.raises(InvalidRequest, match=r"head\.sizes"):
        replace(recipe, views=ViewRecipe(cached=2))
    with pytest.raises(InvalidRequest, match="name sizes or leave it out"):
        replace(recipe, head=HeadRecipe(size_pools=("max",)))
    with pytest.raises(InvalidRequest, match="pooled by mean, max, std, not by median"):
        replace(recipe, head=HeadRecipe(pools=("median",)))


def test_a_label_that_a_field_tells_is_read_blind_to_it(manifest: Path, tmp_path: Path) -> None:
    """Nearly all films with a spot on the left were kept in another way, which shows in a corner."""
    random, rows = np.random.default_rng(0), [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["kept"] = "sharp" if random.random() < (0.95 if "left" in row["labels"] else 0.05) else "soft"
        film = np.array(Image.open(manifest.parent / row["image"]))
        film[:6, 30:] = 255 if row["kept"] == "sharp" else 0
        Image.fromarray(film).save(tmp_path / row["image"])
    marked = tmp_path / "manifest.jsonl"
    marked.write_text("\n".join(json.dumps(row) for row in rows))
    recipe = replace(
        SMALL,
        views=ViewRecipe(cached=1),
        training=TrainingRecipe(epochs=1, batch_size=16, lora_rate=1e-7, head_rate=1e-7, level_rate=1e-8),
    )
    leaning = []
    for field in ("", "kept"):
        asked, backbone = replace(recipe, data=replace(recipe.data, blind_to=field)), FakeBackbone("resnet")
        done = finetune("classification", marked, tmp_path / f"out {field}", asked, backbone, is_quiet=True, cpu=True)
        adapter, own = read_adapter(done.adapter, backbone), load_manifest(marked).of("train")
        assert adapter.card.recipe["data"]["blind_to"] == field
        results = list(classified(backbone, adapter, read_rows(own, backbone.contract), Running()))
        told = np.array([result.logits[adapter.card.labels.index("left")] for result in results])
        leaning.append(abs(np.corrcoef(told, [row.get("kept") == "sharp" for row in own])[0, 1]))
    assert leaning[0] > 0.6
    assert leaning[1] < 0.1
    for field in ("weight", "source"):  # one that no row has, and one that is the same in all
        odd = replace(recipe, data=replace(recipe.data, blind_to=field))
        with pytest.raises(InvalidRequest, match=f"The training rows do not differ in '{field}'"):
            finetune("classification", marked, tmp_path / field, odd, FakeBackbone("resnet"), is_quiet=True, cpu=True)
    with pytest.raises(InvalidRequest, match=r"set head\.pools"):
        replace(recipe, data=replace(recipe.data, blind_to="kept"), head=HeadRecipe(pools=()))


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
    pools = ("mean", "max")
    options = {"first_block": block, "views": 2, "strength": SMALL.views.strength, "seed": 0, "pools": pools, "is_quiet": True}
    tower = backbone.image_tower
    cache = TrunkCache.build(tower, backbone.fingerprint, films, backbone.contract, tmp_path, **options)
    from foundation.towers.tower import TrunkState

    with torch.inference_mode():
        state = TrunkState(cache.state(range(6), [0] * 6).float(), cache.grid)
        upper = tower.finish(tower.run(state, block)).embedding
        whole = tower(to_pixels(np.asarray(films), backbone.contract)).embedding
    scale = float(whole.abs().max())
    torch.testing.assert_close(upper / scale, whole / scale, atol=3e-3, rtol=0)  # the cache is float16
    assert not np.array_equal(cache.hidden[:, 0], cache.hidden[:, 1])  # the second view is another
    recipe = replace(SMALL, lora=LoraRecipe(first_block=block), head=HeadRecipe(pools=pools))
    model = AdaptedClassifier(backbone, recipe, LabelTable((LabelGroup("labels", ("left", "low")),)))
    with torch.inference_mode():
        batch = cache.batch(range(6), [0] * 6)
        from_cache = model.pooled(batch, model.features(batch).levels)
        pixels = {"pixels": to_pixels(np.asarray(films), backbone.contract)}
        directly = model.pooled(pixels, model.features(pixels).levels)
    remove_lora(backbone.image_tower)
    assert from_cache is not None
    assert directly is not None
    torch.testing.assert_close(from_cache, directly, atol=3e-3 * float(directly.abs().max()), rtol=0)
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


def test_several_tasks_phantoms_and_another_scanner(manifest: Path, tmp_path: Path) -> None:
    """A free label and a choice in one adapter, each known on its own films; phantoms join the training films only."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["image"] = str(manifest.parent / line["image"])
        line["source"] = "one" if number % 2 else "two"
        line["labels"] = ["effusion" if name == "left" else name for name in line["labels"]]
        if line["source"] == "two":
            line["labels"] = ["low" if "low" in line["labels"] else "normal"]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    heads = (
        LabelGroup("findings", ("effusion",), where=("source=one",)),
        LabelGroup("kind", ("normal", "low"), multi_label=False, where=("source=two",)),
    )
    recipe = replace(
        SMALL,
        data=DataRecipe(heads=heads, phantoms=6, contrasts=(("low", "normal"),)),
        views=ViewRecipe(cached=1, altered=SMALL.views.strength),
        training=replace(SMALL.training, epochs=4, average=0.5, mixup=0.2),
    )
    made = finetune("classification", tmp_path / "m.jsonl", tmp_path / "out", recipe, FakeBackbone(), is_quiet=True, cpu=True)
    card = made.card
    assert card.is_multi_label
    assert card.head["exclusive"] == ((1, 2),)
    assert card.calibration.slope[1] == card.calibration.slope[2]
    assert card.calibration.bias[1:] == (0.0, 0.0)
    assert {record.source: record.splits for record in card.data}["phantom"] == ("train",)
    values = {(metric.split, metric.name, metric.label): metric.value for metric in card.metrics}
    assert {"val", "test", "test, altered", "phantoms"} == {split for split, _, _ in values}
    assert values["test", "auroc", "low against normal"] == pytest.approx(values["test", "auroc", "low"])
    adapter = read_adapter(made.adapter, FakeBackbone())
    opened = Classifier.open(adapter.card, adapter.head)
    result = opened.result(np.array([0.0, 2.0, 1.0]))
    assert result.probabilities[1:].sum() == pytest.approx(1.0)
    assert "normal" in result.positive
    assert "low" not in result.positive
    assert result.normal_probability is None


def test_films_of_a_study_are_one_item(manifest: Path, tmp_path: Path) -> None:
    """Two films a patient are a study; what is scored are studies, and attention is among what was learnt."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        line |= {"image": str(manifest.parent / line["image"]), "study_id": line["patient_id"]}
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recipe = replace(SMALL, data=DataRecipe(studies=True), training=replace(SMALL.training, epochs=8, batch_size=8))
    made = finetune("classification", tmp_path / "m.jsonl", tmp_path / "out", recipe, FakeBackbone(), is_quiet=True, cpu=True)
    assert {metric.films for metric in made.card.metrics if metric.split == "test"} == {COUNTS["test"] // 2}
    assert made.scores["test"] > 0.8
    adapter = read_adapter(made.adapter, FakeBackbone())
    assert adapter.head["study.score.weight"].abs().max() > 0
    assert Classifier.open(adapter.card, adapter.head).head.study is not None


def test_a_few_shots_are_reported_for_three_seeds(manifest: Path, tmp_path: Path) -> None:
    training = replace(SMALL.training, epochs=2)
    recipe = replace(SMALL, data=DataRecipe(shots=4), head=HeadRecipe(pools=()), training=training)
    made = finetune("classification", manifest, tmp_path, recipe, FakeBackbone(), is_quiet=True, cpu=True)
    named = {(metric.split, metric.name, metric.label): metric.value for metric in made.card.metrics}
    for seed in ("seed 0", "seed 1", "seed 2"):
        blend, words = (named["test", f"auroc mean, {name}", seed] for name in ("blend", "zero-shot"))
        assert blend > words
        assert ("val", "auroc mean, trained", seed) in named
    assert named["test", "auroc mean, trained", "seed 0"] == pytest.approx(made.scores["test"], abs=1e-4)
    with pytest.raises(InvalidRequest, match=r"set head\.pools"):
        FinetuneRecipe("x1", data=DataRecipe(shots=4))


def test_patients_are_balanced() -> None:
    chances = patient_chances(["a", "a", "a", "a", "b"], 1.0)
    assert chances[-1] == pytest.approx(0.5)
    assert patient_chances(["a", "a", "a", "a", "b"], 0.0).tolist() == pytest.approx([0.2] * 5)


def test_the_bundled_recipe_reads() -> None:
    recipe = read_recipe("cxr-findings", FinetuneRecipe)
    assert recipe.name == "cxr-findings"
    assert len(recipe.data.labels) == 13
    assert set(recipe.data.licence_classes) == {"permissive", "attribution"}
    assert read_recipe("tb-screen", FinetuneRecipe).views.altered is not None
    assert read_recipe("pediatric-pneumonia", FinetuneRecipe).data.contrasts == (("bacterial pneumonia", "viral pneumonia"),)


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
