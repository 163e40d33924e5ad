"""From a run to a folder that plain open_clip opens, with the embeddings that training had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from foundation.checkpoint import open_checkpoint
from foundation.errors import InvalidRequest
from training.pretraining.assemble import assemble
from training.pretraining.learner import Learner, TextSide
from training.pretraining.recipe import PretrainRecipe

SENTENCES = ("no effusion", "the film shows left effusion", "x")


@pytest.fixture(scope="module")
def folder(tiny: PretrainRecipe, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(tiny.model, finished_run, tmp_path_factory.mktemp("assembled"))


def trained(recipe: PretrainRecipe, run: Path) -> tuple[Learner, TextSide]:
    state = load_file(run / "learner.safetensors")
    names = tuple(f"target {number}" for number in range(len(state["findings.head.bias"])))
    learner = Learner(recipe.model, recipe.stage[-1].size, names, torch.full((len(names),), 0.5))
    text = TextSide(Path(recipe.model.text_folder), SENTENCES)
    learner.add_text(text)
    learner.load_state_dict(state)
    return learner.eval(), text


def test_embeddings_are_those_of_training(tiny: PretrainRecipe, finished_run: Path, folder: Path) -> None:
    learner, text = trained(tiny, finished_run)
    model = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    backbone = open_checkpoint(str(folder)).backbone
    films = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        images = learner.project(learner.feature_map(films).mean((2, 3)))
        texts = learner.project_text(text.pooled(SENTENCES))
        for found in (
            model.encode_image(films, normalize=True),
            F.normalize(backbone.encode_image(films).embedding, dim=-1),
        ):
            torch.testing.assert_close(found, images, atol=5e-3, rtol=0)  # kept in float16
        for found in (
            model.encode_text(tokenizer(list(SENTENCES)), normalize=True),
            F.normalize(backbone.encode_text(list(SENTENCES)), dim=-1),
        ):
            torch.testing.assert_close(found, texts, atol=0.02, rtol=0)  # training pools in bfloat16
        assert float((images[0] - images[1]).abs().max()) > 5e-3  # random films do differ
    assert model.logit_scale.item() == pytest.approx(learner.logit_scale.item(), abs=1e-2)
    assert model.logit_bias.item() == pytest.approx(learner.logit_bias.item(), abs=1e-2)


def test_the_text_projection_is_the_trained_one(tiny: PretrainRecipe, finished_run: Path, folder: Path) -> None:
    kept = load_file(folder / "open_clip_model.safetensors")["text.text_projection"].float()
    learnt = load_file(finished_run / "learner.safetensors")["text_projection"]
    distilled = load_file(Path(tiny.model.text_folder) / "text.safetensors")["text.text_projection"]
    torch.testing.assert_close(kept, learnt, atol=1e-3, rtol=0)
    assert not torch.equal(learnt, distilled)


def test_nothing_of_the_training_heads_is_shipped(folder: Path) -> None:
    names = load_file(folder / "open_clip_model.safetensors")
    assert {name.partition(".")[0] for name in names} == {"visual", "text", "logit_scale", "logit_bias"}


def test_a_size_that_open_clip_cannot_open_is_refused(tiny: PretrainRecipe, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot open vesalius_tiny_visformer at 64 pixels"):
        assemble(replace(tiny.model, image_size=64), finished_run, tmp_path)
    assert not list(tmp_path.iterdir())
