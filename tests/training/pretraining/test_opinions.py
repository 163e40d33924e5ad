"""Second opinions: told of a film by regressions on other patients, right where labels are wrong, the same each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip.timm_model
import pytest
import torch
from safetensors.torch import load_file

from foundation.errors import InvalidRequest
from foundation.prompts import NIH_FINDINGS
from foundation.towers.rewriting import image_tower
from foundation.towers.tower import ImageTower
from training.pretraining import opinions, pretrain
from training.pretraining.feed import Feed
from training.pretraining.opinions import looked_at, second_opinions, softened
from training.pretraining.pretrain import Pretraining
from training.pretraining.recipe import PretrainRecipe

SIZE, FILMS = 64, 160
FEED = Feed(torch.device("cpu"), 0.5, 0.25, is_bf16=True)


@pytest.fixture(autouse=True)
def sizes_near_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 128-pixel towers would cost this one three times as much."""
    monkeypatch.setattr(opinions, "SIZES", (96, 128))


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    torch.manual_seed(0)
    visual = open_clip.timm_model.TimmModel("resnet14t", 32, image_size=SIZE, pool="avg", proj="linear")
    return image_tower(visual.eval())


@pytest.fixture(scope="module")
def films() -> tuple[np.ndarray, np.ndarray]:
    """Noise films; a finding is a bright square at a random place. Truth (N, 2): the finding, and nothing that is seen."""
    random = np.random.default_rng(0)
    shown = random.integers(60, 120, (FILMS, SIZE, SIZE)).astype(np.uint8)
    truth = (random.random((FILMS, 2)) < 0.5).astype(np.float32)
    for film, (is_there, _) in zip(shown, truth, strict=True):
        top, left = random.integers(0, SIZE - 24, 2)
        if is_there:
            film[top : top + 24, left : left + 24] = 250
    return shown, truth


def test_a_wrong_label_is_outvoted_by_the_films_of_others(tower: ImageTower, films: tuple[np.ndarray, np.ndarray]) -> None:
    shown, truth = films
    mined = truth.copy()
    wrong = np.arange(0, FILMS, 10)
    mined[wrong, 0] = 1 - mined[wrong, 0]
    patients = [f"p{number // 2}" for number in range(FILMS)]
    told = second_opinions(tower, shown, mined, patients, FEED, folds=2)
    assert told.shape == truth.shape
    assert ((told > 0) & (told < 1)).all()
    assert ((told[wrong, 0] > 0.5) == (truth[wrong, 0] > 0.5)).mean() > 0.8
    seen, unseen = ((told > 0.5) == (truth > 0.5)).mean(axis=0)
    assert seen > unseen + 0.2
    np.testing.assert_array_equal(told, second_opinions(tower, shown, mined, patients, FEED, folds=2))


def test_a_film_is_judged_without_its_own_label(tower: ImageTower, films: tuple[np.ndarray, np.ndarray]) -> None:
    shown, truth = films
    patients = [f"p{number // 2}" for number in range(FILMS)]
    told = second_opinions(tower, shown, truth, patients, FEED, folds=2)
    changed = truth.copy()
    changed[4:6] = 1 - changed[4:6]  # both films of one patient
    again = second_opinions(tower, shown, changed, patients, FEED, folds=2)
    np.testing.assert_array_equal(again[4:6], told[4:6])
    assert (again != told).any()


def test_mirrored_films_are_read_alike(tower: ImageTower, films: tuple[np.ndarray, np.ndarray]) -> None:
    shown = films[0][:8]
    read = looked_at(tower, shown, FEED)
    np.testing.assert_allclose(looked_at(tower, shown[..., ::-1], FEED), read, rtol=0.02, atol=0.02)
    assert len(read[0]) % 3 == 0


def test_a_stage_learns_from_labels_and_opinions_and_goes_on_with_the_same(
    tiny: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(tiny, stage=(tiny.stage[0], replace(tiny.stage[1], second_opinion=0.5)))
    run = Pretraining(recipe, tmp_path / "whole")
    table = run.table("train", recipe.stage[1].size)
    run.run()
    kept = np.load(tmp_path / "whole" / "opinions-1.npy")
    assert kept.shape == table.targets.shape
    known = ~np.isnan(kept)
    names = [name for name, is_told in zip(table.target_names, known.any(axis=0), strict=True) if is_told]
    assert names == [name for name in table.target_names if name in NIH_FINDINGS]
    assert known.any(axis=1).sum() == sum(stream == "nih_cxr14" for stream in table.streams)
    mixed = softened(table, kept, 0.5).targets
    np.testing.assert_allclose(mixed[known], (table.targets[known] + kept[known]) / 2, atol=1e-6)
    np.testing.assert_array_equal(mixed[~known], table.targets[~known])

    class StoppedError(Exception):
        pass

    steps = iter(range(recipe.stage[0].films // recipe.batch + 2))
    plain = pretrain._take_step

    def take_step(*arguments: object) -> None:
        plain(*arguments)  # type: ignore[arg-type]
        if next(steps, None) is None:
            raise StoppedError

    often = replace(recipe, save_every_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_take_step", take_step)
        with pytest.raises(StoppedError):
            Pretraining(often, tmp_path / "parts").run()
    opinions = tmp_path / "parts" / "opinions-1.npy"
    np.testing.assert_array_equal(np.load(opinions), kept)
    opinions.rename(tmp_path / "away.npy")
    with pytest.raises(InvalidRequest, match=r"opinions-1\.npy, which is not in"):
        Pretraining(often, tmp_path / "parts").run()
    (tmp_path / "away.npy").rename(opinions)
    Pretraining(often, tmp_path / "parts").run()
    whole, parts = (load_file(tmp_path / name / "learner.safetensors") for name in ("whole", "parts"))
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
