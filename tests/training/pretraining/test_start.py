"""A course that begins from a checkpoint begins with that checkpoint's towers, and with its text tower's words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foundation.errors import InvalidRequest
from training.pretraining.assemble import assemble
from training.pretraining.learner import TextSide
from training.pretraining.pretrain import Pretraining
from training.pretraining.recipe import PretrainRecipe
from training.pretraining.start import start_tensors, take_text_tower


@pytest.fixture(scope="module")
def checkpoint(tiny: PretrainRecipe, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(tiny.model, finished_run, tmp_path_factory.mktemp("start"))


def test_the_first_stage_begins_with_the_checkpoints_towers(tiny: PretrainRecipe, checkpoint: Path, tmp_path: Path) -> None:
    aligned = replace(tiny, stage=tiny.stage[1:], start=str(checkpoint))
    run = Pretraining(aligned, tmp_path / "run")
    learner, _ = run._begin(0, run.table("train", aligned.stage[0].size))
    state, held = learner.state_dict(), start_tensors(str(checkpoint))
    assert {"text_projection", "logit_scale", "visual.head.proj.weight"} <= held.keys()
    assert [name for name, tensor in held.items() if not torch.equal(state[name], tensor)] == []
    torch.manual_seed(0)
    fresh = Pretraining(replace(aligned, start=""), tmp_path / "fresh")
    random = fresh._begin(0, fresh.table("train", aligned.stage[0].size))[0].state_dict()
    assert not torch.equal(random["visual.head.proj.weight"], held["visual.head.proj.weight"])


def test_the_text_folder_of_a_checkpoint_says_what_the_distilled_one_said(
    tiny: PretrainRecipe, checkpoint: Path, tmp_path: Path
) -> None:
    sentences = ["no effusion", "left effusion"]
    taken = TextSide(take_text_tower(str(checkpoint), tmp_path / "text"), sentences)
    told = TextSide(Path(tiny.model.text_folder), sentences)
    assert torch.equal(taken.ids(sentences), told.ids(sentences))
    torch.testing.assert_close(taken.pooled(sentences), told.pooled(sentences), atol=0.03, rtol=0)  # kept in float16


def test_a_tower_of_another_kind_is_refused(tiny: PretrainRecipe, checkpoint: Path, tmp_path: Path) -> None:
    other = replace(tiny, model=replace(tiny.model, timm_name="resnet18"), start=str(checkpoint))
    run = Pretraining(other, tmp_path)
    with pytest.raises(InvalidRequest, match="The weights to go on from lack visual"):
        run._begin(0, run.table("train", other.stage[0].size))
