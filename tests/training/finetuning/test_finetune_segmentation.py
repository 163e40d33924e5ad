"""Segmentation end to end on phantoms, whose masks are exact: it learns, is stored, is reported, and refuses by name."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from phantom_films import write_phantoms
from PIL import Image

from adapters.fake import FakeBackbone
from adapters.files import read_adapter
from adapters.lora import load_weights, remove_lora
from adapters.store import AdapterStore
from adapters.tasks.parts import largest_parts
from adapters.tasks.segmentation import SegmentationOutput, Segmenter
from foundation.checkpoint import open_checkpoint
from foundation.errors import AdapterRefused, InvalidRequest, ManifestError
from foundation.preprocess import preprocess
from foundation.readers import read_film
from foundation.tiny import make_tiny_checkpoint
from training.evaluating.evaluate import evaluate
from training.evaluating.job import Options
from training.finetuning.finetune import finetune
from training.finetuning.job import FinetuneJob, FinetuneResult
from training.finetuning.recipe import LoraRecipe, PaceRecipe
from training.finetuning.segmentation import unet
from training.finetuning.segmentation.clicks import TITLES
from training.finetuning.segmentation.films import load_films
from training.finetuning.segmentation.finetune import learn_clicks
from training.finetuning.segmentation.masks import MaskRecipe, class_names, read_masked
from training.finetuning.segmentation.phrases import Phrase
from training.finetuning.segmentation.recipe import (
    ClickRecipe,
    MaskDataRecipe,
    SegmentationHeadRecipe,
    SegmentationRecipe,
    SegmentationViews,
)
from training.finetuning.segmentation.scores import compare
from training.finetuning.segmentation.trainee import (
    AdaptedSegmenter,
    SegmentationTrainee,
    dice_and_entropy,
    overlap,
    segmentation_loss,
)
from training.manifests.manifest import load_manifest
from training.recipe import fill, read_recipe

LUNGS = MaskRecipe("mask", classes={"lungs": []})
EFFUSION = MaskRecipe("mask_multi", classes={"effusion": [3]})
ELSEWHERE = Phrase(("liver", "spleen", "a car", "brain"))
SMALL = SegmentationRecipe(
    "phantom-lungs",
    data=MaskDataRecipe(masks=(LUNGS, EFFUSION), film_height_mm=400.0, unions={"chest": ("lungs", "effusion")}),
    head=SegmentationHeadRecipe(phrases=(Phrase(("lungs", "both lungs", "the lungs", "lung fields"), ("lungs",)), ELSEWHERE)),
    views=SegmentationViews(spoken=0.15),
    clicks=ClickRecipe(epochs=3),
    lora=LoraRecipe(rank=4, alpha=8.0),
    training=PaceRecipe(epochs=16, batch_size=8, lora_rate=2e-3, head_rate=6e-3, patience=16),
)
ONE_EPOCH = replace(SMALL, clicks=ClickRecipe(epochs=0), training=replace(SMALL.training, epochs=1))


class Patched(FakeBackbone):
    """With the dense read-out that evaluation asks of a backbone."""

    def patch_embeddings(self, features: object) -> torch.Tensor:
        return torch.nn.functional.normalize(self.image_tower.embed_patches(features.tokens), dim=-1)  # type: ignore[attr-defined]


def backbone() -> Patched:
    return Patched("visformer")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), {"train": 48, "val": 12, "test": 12})


@pytest.fixture(scope="module")
def made(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    return finetune("segmentation", manifest, tmp_path_factory.mktemp("run"), SMALL, backbone(), is_quiet=True, cpu=True)


def value(made: FinetuneResult, name: str, label: str, split: str = "test") -> float:
    return next(m.value for m in made.card.metrics if (m.name, m.label, m.split) == (name, label, split))


def test_it_learns_and_beats_the_mean_mask(made: FinetuneResult) -> None:
    assert value(made, "dice", "lungs") > value(made, "mean mask dice", "lungs") + 0.03
    assert value(made, "dice", "lungs") > 0.88
    assert value(made, "hd95 (mm)", "lungs") < 60
    assert made.measure == "dice"
    assert made.loop.history[-1]["dice"] > made.loop.history[0]["dice"]


def test_the_card_says_what_was_done(made: FinetuneResult) -> None:
    card = made.card
    assert (card.task, card.labels) == ("segmentation", ("lungs", "effusion"))
    assert {record.licence_class for record in card.data} == {"permissive", "nc"}
    assert any(limit.startswith("Non-commercial research only") for limit in card.limits)
    assert (made.adapter.parent / "report.md").is_file()


def test_the_adapter_draws_as_it_was_scored(made: FinetuneResult, manifest: Path, tmp_path: Path) -> None:
    """Through the store and the one preprocess, as serving does it."""
    base = backbone()
    adapter = read_adapter(AdapterStore(tmp_path / "store").add(made.adapter).folder, base)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "test"]
    films = [read_film((manifest.parent / row["image"]).read_bytes()) for row in rows]
    pixels = torch.stack([torch.from_numpy(preprocess(film, base.contract)) for film in films])
    load_weights(base.image_tower, adapter.lora)
    with torch.inference_mode():
        results = Segmenter.open(adapter.card, adapter.head)(base.encode_image(pixels), pixels, [(64, 64)] * 12, base.contract)
    remove_lora(base.image_tower)
    truth = [np.asarray(Image.open(manifest.parent / row["mask"])) > 0 for row in rows]
    dice = [float(overlap(result.mask("lungs"), mask)) for result, mask in zip(results, truth, strict=True)]
    assert np.mean(dice) == pytest.approx(value(made, "dice", "lungs"), abs=1e-4)


def test_the_folder_verifies_and_refuses(made: FinetuneResult, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    assert store.add(made.adapter).card.task == "segmentation"
    with pytest.raises(AdapterRefused, match="was made for the base"):
        read_adapter(store.get("phantom-lungs").folder, FakeBackbone("visformer", seed=1))
    head = store.get("phantom-lungs").folder / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    with pytest.raises(AdapterRefused, match="SHA-256"):
        store.verify("phantom-lungs")


def test_the_report(made: FinetuneResult, manifest: Path, tmp_path: Path) -> None:
    opened = SimpleNamespace(backbone=backbone(), folder=Path("no-such-folder"), passport=SimpleNamespace(licence=""))
    before = {name: tensor.clone() for name, tensor in opened.backbone.image_tower.state_dict().items()}
    options = Options(resamples=20, min_count=3)
    given = {"report_dir": tmp_path / "report", "checkpoint": opened, "options": options, "log": lambda _: None}
    report = evaluate(str(made.adapter), manifest, **given)
    assert report.find("dice", "lungs", by="phantom-lungs").value == pytest.approx(value(made, "dice", "lungs"), abs=1e-4)
    assert report.find("dice", "lungs", by="mean mask").value == pytest.approx(value(made, "mean mask dice", "lungs"), abs=1e-4)
    assert report.find("dice gain", "lungs", by="over mean mask").value > 0
    assert report.find("dice", "lung fields (lungs)").value >= 0
    assert 0 <= report.find("nothing drawn", "brain (not there)").value <= 1
    assert 0 <= report.find("nothing drawn", "noise").value <= 1
    assert report.find("dice", "chest").value == pytest.approx(value(made, "dice", "chest"), abs=1e-4)
    assert (tmp_path / "report" / "films-best-worst.png").is_file()
    assert (tmp_path / "report" / "dice-phantom.png").is_file()
    assert str(tmp_path) not in (tmp_path / "report" / "report.md").read_text()
    after = opened.backbone.image_tower.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_dice_over_clicks(made: FinetuneResult, manifest: Path, tmp_path: Path) -> None:
    opened = SimpleNamespace(backbone=backbone(), folder=Path("no-such-folder"), passport=SimpleNamespace(licence=""))
    given = {"checkpoint": opened, "options": Options(resamples=20, min_count=3), "log": lambda _: None}
    report = evaluate(str(made.adapter), manifest, report_dir=tmp_path, **given)
    assert report.find("dice", "0 clicks", group="lungs").value == pytest.approx(by_words(made, manifest, "lungs"), abs=1e-6)
    [section] = [
        one for one in json.loads((tmp_path / "report.json").read_text())["sections"] if one["plots"] == ["clicks.png"]
    ]
    dice = [one for one in section["measures"] if one["name"] == "dice" and one["group"] == "all"]
    assert [one["label"] for one in dice] == [*TITLES]
    assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in dice)
    values = {one["label"]: one["value"] for one in dice}
    for title in TITLES[1:]:
        gain = report.find("gain over 0 clicks", title).value
        assert gain == pytest.approx(values[title] - values["0 clicks"], abs=1e-5)
    for name in ("dice", "dice, clicked anew"):
        curve = [values["0 clicks"], *(report.find(name, title, by="phantom-lungs").value for title in TITLES[1:-1])]
        assert all(later > earlier - 0.01 for earlier, later in pairwise(curve)), (name, curve)  # a click never costs
    assert values[TITLES[-2]] > values["0 clicks"] + 0.01
    assert "| 0 clicks |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "clicks.png").read_bytes().startswith(b"\x89PNG")


def by_words(made: FinetuneResult, manifest: Path, label: str) -> float:
    """The mean Dice of what the name of a class draws with the largest part of its mask, film by film."""
    base, dice = backbone(), []
    adapter = read_adapter(made.adapter, base)
    load_weights(base.image_tower, adapter.lora)
    for row in load_manifest(manifest).of("test"):
        film, truth = read_masked(row, SMALL.data.masks)
        aim = largest_parts(truth[label], 1)
        if aim.any():
            pixels = torch.from_numpy(preprocess(film, base.contract))[None]
            with torch.inference_mode():
                features = base.encode_image(pixels)
            [result] = Segmenter.open(adapter.card, adapter.head)(features, pixels, [aim.shape], base.contract)
            dice.append(2 * (result.mask(label) & aim).sum() / (result.mask(label).sum() + aim.sum()))
    return float(np.mean(dice))


def test_the_unet_stands_beside_it(
    made: FinetuneResult, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unet, "EPOCHS", 3)
    opened = SimpleNamespace(backbone=backbone(), folder=Path("no-such-folder"), passport=SimpleNamespace(licence=""))
    options = Options(resamples=20, min_count=3, baselines=("unet",), baseline_cache=str(tmp_path / "kept"))
    given = {"checkpoint": opened, "options": options, "log": lambda _: None}
    report = evaluate(str(made.adapter), manifest, **given)
    assert report.find("dice", "lungs", by="U-Net").value > 0.3
    assert report.find("dice gain", "chest", by="over U-Net")
    monkeypatch.setattr(unet, "_train", lambda *_: pytest.fail("it was trained already"))
    again = evaluate(str(made.adapter), manifest, **given)
    assert again.find("dice", "lungs", by="U-Net") == report.find("dice", "lungs", by="U-Net")


@pytest.mark.parametrize("layout", ["biomedclip"])
def test_another_checkpoint(layout: str, manifest: Path, tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "checkpoint", layout)
    some = replace(ONE_EPOCH, data=replace(SMALL.data, masks=(LUNGS,), unions={}))
    result = finetune("segmentation", manifest, tmp_path / "out", some, str(folder), is_quiet=True, cpu=True)
    adapter = read_adapter(result.adapter, open_checkpoint(str(folder)).backbone)
    assert Segmenter.open(adapter.card, adapter.head).card.head["level_widths"] == [64, 64, 64, 64]


def test_every_trained_tensor_gets_a_gradient(manifest: Path, tmp_path: Path) -> None:
    base = backbone()
    recipe = replace(SMALL, views=SegmentationViews(blanks=0.0))
    job = FinetuneJob(recipe, load_manifest(manifest), base, "fake", tmp_path, tmp_path, is_quiet=True)
    films = {"train": load_films(job, "val"), "val": load_films(job, "val")}
    model = AdaptedSegmenter(base, recipe.lora, ("lungs", "effusion"), ("{}",))
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.01)  # at zero, A has no gradient yet
    given = {"batch_size": 12, "patient_balance": 0.5, "blanks": 0.0, "seed": 0}
    trainee = SegmentationTrainee(films, base.contract, recipe.views.strength, **given)
    total = sum(trainee.loss(model, trainee.load(draws))[0] for draws in trainee.plan(0))
    total.backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    still = [name for name, p in learning.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert any("lora_A" in name for name in learning)
    assert not still
    remove_lora(base.image_tower)


def test_learning_clicks_leaves_the_words_alone(manifest: Path, tmp_path: Path) -> None:
    base = backbone()
    recipe = replace(SMALL, clicks=ClickRecipe(epochs=1, rounds=2))
    job = FinetuneJob(recipe, load_manifest(manifest), base, "fake", tmp_path, tmp_path, is_quiet=True, cpu=True)
    films = {"train": load_films(job, "val"), "val": load_films(job, "val")}
    model = AdaptedSegmenter(base, recipe.lora, ("lungs", "effusion"), ("{}",))
    given = {"batch_size": 6, "patient_balance": 0.5, "blanks": 0.0, "seed": 0}
    trainee = SegmentationTrainee(films, base.contract, recipe.views.strength, **given)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = learn_clicks(job, trainee, model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("head.refiner.")}
    assert report is not None
    assert {"dice", "words", "dice_1", "dice_2", "dice_3"} <= set(report.history[-1])
    assert learn_clicks(replace(job, recipe=replace(recipe, clicks=ClickRecipe(epochs=0))), trainee, model) is None
    remove_lora(base.image_tower)


def test_what_is_unknown_counts_nowhere() -> None:
    torch.manual_seed(0)
    output = SegmentationOutput(
        torch.randn(2, 2, 8, 8, requires_grad=True), torch.randn(2, 2, requires_grad=True), torch.zeros(2, 1, 8, 8)
    )
    target = (torch.rand(2, 2, 8, 8) > 0.5).float()
    known = torch.tensor([[True, False], [True, True]])
    loss, _ = segmentation_loss(output, target, known, dice_and_entropy())
    loss.backward()
    assert not output.masks.grad[0, 1].any()
    assert not output.presence.grad[0, 1]
    assert output.masks.grad[0, 0].any()
    nothing, _ = segmentation_loss(output, target, torch.zeros(2, 2, dtype=torch.bool), dice_and_entropy())
    assert float(nothing.detach()) == 0.0


def test_distances_are_in_millimetres() -> None:
    truth, found = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    truth[10:40, 10:40], found[10:40, 14:44] = True, True  # four columns to the right
    measured = compare(found, truth, (2.0, 0.5))
    assert measured["dice"] == pytest.approx(2 * 26 / 60)
    assert measured["hd95"] == pytest.approx(4 * 0.5)
    assert measured["surface dice"] == 1.0  # all borders within 3 mm
    assert compare(found, truth, (2.0, 5.0))["hd95"] == pytest.approx(4 * 5.0)
    nothing = compare(np.zeros_like(found), truth, (2.0, 0.5))
    assert (nothing["dice"], nothing["surface dice"]) == (0.0, 0.0)
    assert nothing["hd95"] == pytest.approx(np.hypot(120, 30))


def test_odd_masks_are_named_before_training(manifest: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        line |= {name: str(manifest.parent / line[name]) for name in ("image", "mask", "mask_multi")}

    def run(change: dict[str, object], recipe: SegmentationRecipe = ONE_EPOCH) -> None:
        changed = [lines[0] | change, *lines[1:]]
        (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, changed)))
        finetune("segmentation", tmp_path / "m.jsonl", tmp_path / "out", recipe, backbone(), is_quiet=True, cpu=True)

    Image.fromarray(np.zeros((10, 12), np.uint8)).save(tmp_path / "small.png")
    Image.fromarray(np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ManifestError, match="row 1: the mask in 'mask_multi' has 10 x 12 pixels, the film 64 x 64"):
        run({"mask_multi": str(tmp_path / "small.png")})
    with pytest.raises(ManifestError, match=r"row 1: mask_multi .*is not a file"):
        run({"mask_multi": "gone.png"})
    with pytest.raises(ManifestError, match="row 1: the mask in 'mask_multi' must be one grey picture"):
        run({"mask_multi": str(tmp_path / "colour.png")})
    with pytest.raises(ManifestError, match="row 1: the mask in 'mask_multi' cannot be read"):
        run({"mask_multi": str(tmp_path / "broken.png")})
    plain = replace(ONE_EPOCH, head=SegmentationHeadRecipe())
    wrong = replace(plain, data=MaskDataRecipe(masks=(MaskRecipe("mask_multi", classes={"liver": [9]}),)))
    with pytest.raises(InvalidRequest, match="No train mask holds 'liver'"):
        run({}, wrong)
    none = replace(plain, data=MaskDataRecipe(masks=(MaskRecipe("mask_heart", classes={"heart": []}),)))
    with pytest.raises(ManifestError, match="No row that says anything for segmentation"):
        run({}, none)


def test_recipes() -> None:
    recipe = read_recipe("lungs", SegmentationRecipe)
    assert class_names(recipe.data.masks) == ("right lung field", "left lung field", "right whole lung", "left whole lung")
    with pytest.raises(InvalidRequest, match=r"data\.unions name classes"):
        fill(SegmentationRecipe, {"name": "x1", "data": {"masks": [{"classes": {"a": []}}], "unions": {"u": ["b"]}}}, "recipe")
    with pytest.raises(InvalidRequest, match=r"data\.masks is empty"):
        fill(SegmentationRecipe, {"name": "x1"}, "recipe")
    with pytest.raises(InvalidRequest, match="name the classes"):
        fill(SegmentationRecipe, {"name": "x1", "data": {"masks": [{"field": "mask"}]}}, "recipe")
