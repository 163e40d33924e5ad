"""Pretraining end to end in miniature: a stopped run ends where an unstopped one does; odd recipes are refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foundation.errors import InvalidRequest
from training.pretraining.bundle import BundleRecipe
from training.pretraining.losses import Losses
from training.pretraining.pretrain import Pretraining
from training.pretraining.recipe import OBJECTIVES, PretrainRecipe, StageRecipe, at_step, rate_share
from training.pretraining.stage_log import note_stage, read_stages
from training.recipe import read_recipe


class StoppedError(Exception):
    pass


def run_until(recipe: PretrainRecipe, out: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh start or resumption that is killed in the middle of step number `steps` + 1 of this sitting."""
    plain, done = Losses.__call__, iter(range(steps))

    def losses(self: Losses, *arguments: Any) -> Any:
        if next(done, None) is None:
            raise StoppedError
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Losses, "__call__", losses)
        with pytest.raises(StoppedError):
            Pretraining(recipe, out).run()


def test_a_resumed_run_ends_with_the_same_numbers(
    tiny: PretrainRecipe, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(tiny, tmp_path, 3, monkeypatch)  # inside the first stage
    assert json.loads((tmp_path / "place.json").read_text())["step"] == 3
    torch.manual_seed(999)
    np.random.seed(999)
    run_until(tiny, tmp_path, 2, monkeypatch)  # inside the second
    assert json.loads((tmp_path / "place.json").read_text())["stage"] == 1
    Pretraining(tiny, tmp_path).run()
    whole, parts = (load_file(folder / "learner.safetensors") for folder in (finished_run, tmp_path))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    stages, expected = read_stages(tmp_path), read_stages(finished_run)
    assert [stage["val"] for stage in stages] == [stage["val"] for stage in expected]
    assert "tuberculosis" in stages[0]["val"]
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".pt", ".next") or "partial" in path.name]


@pytest.mark.parametrize("place", ["_scores", "_save"])
def test_a_run_killed_as_a_stage_ends_tells_its_figures_once(
    tiny: PretrainRecipe, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    tiny = replace(tiny, save_every_s=1e9, validate_every=1 << 30)  # nothing is saved or told before the stage ends

    def killed(*_: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, place, killed)
        with pytest.raises(StoppedError):
            Pretraining(tiny, tmp_path).run(stages=1)
    assert len(read_stages(tmp_path)) == (place == "_save")
    with (tmp_path / "stages.jsonl").open("a") as log:
        log.write('{"number": 1, "stage": {"na')  # as a full disk may leave it
    Pretraining(tiny, tmp_path).run()
    stages, expected = read_stages(tmp_path), read_stages(finished_run)
    assert [stage["number"] for stage in stages] == [1, 2]
    assert [stage["val"] for stage in stages] == [stage["val"] for stage in expected]


def test_a_broken_line_among_whole_ones_is_named_before_anything_is_trained(tiny: PretrainRecipe, tmp_path: Path) -> None:
    note_stage(tmp_path, 1, {"seconds": 1.0})
    path = tmp_path / "stages.jsonl"
    path.write_text('{"seconds"\n' + path.read_text())
    run = Pretraining(tiny, tmp_path)
    with pytest.raises(InvalidRequest, match="Line 1 of stages"):
        run.run()


def test_both_stages_taught_everything_they_name(tiny: PretrainRecipe, finished_run: Path, tmp_path: Path) -> None:
    Pretraining(tiny, tmp_path).run(stages=1)
    first, last = (load_file(folder / "learner.safetensors") for folder in (tmp_path, finished_run))
    assert "text_projection" not in first
    assert {"text_projection", "captions.embed.weight", "logit_scale"} <= last.keys()
    assert last["visual.trunk.pos_embed1"].shape[-2:] == (12, 12)  # refitted for the second stage's size
    moved = [name for name in first if name in last and first[name].shape == last[name].shape]
    still = [name for name in moved if torch.equal(first[name], last[name])]
    assert still == [name for name in first if name.startswith(("masked.", "gradients."))]  # named by no stage


def test_a_finished_run_has_nothing_left_to_do(tiny: PretrainRecipe, finished_run: Path) -> None:
    before = (finished_run / "learner.safetensors").read_bytes()
    Pretraining(tiny, finished_run).run()
    assert (finished_run / "learner.safetensors").read_bytes() == before


def test_every_objective_gives_a_finite_loss_and_gradients(tiny: PretrainRecipe, tmp_path: Path) -> None:
    alone = [StageRecipe(name, 64, 8, 1e-3, {name: 1.0}) for name in ("masked", "gradients")]
    for stage in (*alone, at_step(tiny.stage[1], 0)):
        run = Pretraining(replace(tiny, stage=(stage,)), tmp_path / stage.name)
        table = run.table("train", stage.size)
        learner, language = run._begin(0, table)
        assert (language is None) == (stage in alone)
        torch.nn.init.normal_(learner.findings.head.weight)  # begins at zero, where no gradient passes
        chosen = np.flatnonzero(np.array([name in ("phantom", "nih_cxr14") for name in table.streams]))[:12]
        chosen = np.concatenate([chosen[:6], np.arange(len(table) - 6, len(table))])
        losses = Losses(run.feed, run.recipe.augment, language)(learner, table, chosen, stage, seed=1)
        assert list(losses) == [name for name in OBJECTIVES if name in stage.objectives]
        for name, loss in losses.items():
            learner.zero_grad()
            loss.backward(retain_graph=True)
            trunk = learner.visual.trunk.stem[0].weight.grad
            assert bool(torch.isfinite(loss)), name
            assert trunk is not None, name
            assert float(trunk.abs().max()) > 0, name


def with_stage(recipe: PretrainRecipe, number: int, **changes: Any) -> PretrainRecipe:
    stages = list(recipe.stage)
    stages[number] = replace(stages[number], **changes)
    return replace(recipe, stage=tuple(stages))


def test_only_what_is_still_to_come_may_be_changed(
    tiny: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(tiny, tmp_path, 2, monkeypatch)
    for changed, name in (
        (replace(tiny, seed=2), "seed"),
        (replace(tiny, batch=4), "batch"),
        (replace(tiny, data=replace(tiny.data, phantoms=9)), r"data\.phantoms"),
        (with_stage(tiny, 0, flip=0.25), r"stage\.1\.flip"),
    ):
        with pytest.raises(InvalidRequest, match=f"another recipe: {name} differ"):
            Pretraining(changed, tmp_path).run()
    allowed = replace(with_stage(tiny, 1, films=64), out="elsewhere", save_every_s=9.0, validate_every=8)
    allowed = BundleRecipe(**{one.name: getattr(allowed, one.name) for one in fields(allowed)}, licence="MIT")
    run_until(allowed, tmp_path, 1, monkeypatch)
    assert json.loads((tmp_path / "place.json").read_text())["stage"] == 0


def test_a_state_that_knows_its_recipe_by_name_goes_on(
    tiny: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(tiny, tmp_path, 2, monkeypatch)
    (tmp_path / "place.json").write_text(json.dumps({"stage": 0, "step": 2, "recipe": "tiny"}))
    run_until(tiny, tmp_path, 1, monkeypatch)
    (tmp_path / "place.json").write_text(json.dumps({"stage": 0, "step": 2, "recipe": "huge"}))
    with pytest.raises(InvalidRequest, match="another recipe: name differ"):
        Pretraining(tiny, tmp_path).run()


def test_odd_recipes_are_refused_before_anything_is_read(tiny: PretrainRecipe, tmp_path: Path) -> None:
    nowhere = replace(tiny, data=replace(tiny.data, manifest="nowhere.jsonl"))
    with pytest.raises(InvalidRequest, match="Unknown objective 'guesses'; known: masked, gradients, findings"):
        Pretraining(with_stage(nowhere, 0, objectives={"guesses": 1.0}), tmp_path)
    with pytest.raises(InvalidRequest, match="'align' names sizes, but vesalius_tiny_visformer is bound to one size"):
        Pretraining(with_stage(tiny, 1, sizes=(64, 96)), tmp_path / "sizes").run()
    with pytest.raises(InvalidRequest, match="stream 'hannover' has no films"):
        Pretraining(replace(tiny, data=replace(tiny.data, streams={"hannover": 1.0})), tmp_path / "run").run()


def test_films_that_a_report_speaks_of_are_never_mirrored_or_blended(
    tiny: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_targets, with_text = tiny.stage[0], replace(tiny.stage[1], sizes=(64, 96))
    assert at_step(only_targets, 0) == at_step(only_targets, 1) == only_targets
    even, odd = at_step(with_text, 0), at_step(with_text, 1)
    assert (even.flip, even.mix, even.sizes) == (0.0, 0.0, ())
    assert even.objectives == with_text.objectives
    assert (odd.flip, odd.mix, odd.sizes) == (0.5, 0.3, (64, 96))
    assert odd.objectives == {"findings": 1.0, "prompts": 0.5}
    seen: list[tuple[bool, set[str]]] = []
    plain = Losses.__call__

    def losses(self: Losses, *arguments: Any) -> Any:
        parts = plain(self, *arguments)
        seen.append((arguments[3].mix > 0, set(parts)))
        return parts

    monkeypatch.setattr(Losses, "__call__", losses)
    Pretraining(tiny, tmp_path).run()
    second = seen[-4:]
    assert second == [(False, set(with_text.objectives)), (True, {"findings", "prompts"})] * 2


def test_blended_films_are_seen_at_the_sizes_the_stage_names(tiny: PretrainRecipe, tmp_path: Path) -> None:
    stage = StageRecipe("sizes", 64, 8, 1e-3, {"findings": 1.0}, flip=0.5, mix=0.3, sizes=(64, 96))
    model = replace(tiny.model, timm_name="resnet14t")
    run = Pretraining(replace(tiny, model=model, stage=(stage,)), tmp_path)
    table = run.table("train", 64)
    learner, language = run._begin(0, table)
    losses = Losses(run.feed, run.recipe.augment, language)
    widths = []
    plain = learner.feature_map
    learner.feature_map = lambda films: (widths.append(films.shape[-1]), plain(films))[1]  # type: ignore[method-assign]
    for seed in range(12):
        loss = losses(learner, table, np.arange(8), stage, seed)["findings"]
        assert torch.isfinite(loss)
    assert set(widths) == {64, 96}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_goes_on_from_one_on_the_cpu(tiny: PretrainRecipe, tmp_path: Path) -> None:
    Pretraining(tiny, tmp_path, "cpu").run(stages=1)
    Pretraining(tiny, tmp_path, "cuda").run()
    stages = read_stages(tmp_path)
    assert all(np.isfinite(list(stage["val"].values())).all() for stage in stages)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "learner.safetensors").values())


def test_learning_rates_warm_up_and_end_as_named() -> None:
    for schedule, middle in (("constant", 1.0), ("cosine", 0.5), ("linear", 0.5)):
        rates = [rate_share(step, 1000, schedule) for step in range(1000)]
        assert rates[0] == pytest.approx(0.01)
        assert rates[:100] == sorted(rates[:100]) or schedule != "constant"
        assert rates[500] == pytest.approx(middle)
        assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=2e-3)


def test_the_bundled_recipe_reads() -> None:
    recipe = read_recipe("bundled", BundleRecipe)
    assert recipe.name == "bundled"
    assert {name for stage in recipe.stage for name in stage.objectives} <= set(OBJECTIVES)
    assert sum(recipe.data.streams.values()) == pytest.approx(1.0)
    assert set(recipe.data.licence_classes) <= {"permissive", "attribution"}
