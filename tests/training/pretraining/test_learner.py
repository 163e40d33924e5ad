"""The tower under training: positions refit, gradients in bfloat16 that are gradients, texts looked up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import SIZE, TEXT
from torch import Tensor, nn

from foundation.blocks import PatchConv2d
from foundation.errors import InvalidRequest
from foundation.phantom import FINDINGS as PHANTOM_FINDINGS
from training.manifests.datasets import phantom_target_names, real_target_names
from training.pretraining.learner import (
    Learner,
    ModelRecipe,
    Prompts,
    TextSide,
    build_visual,
    fit_positions,
    load_text_tower,
    target_weights,
)
from training.pretraining.recipe import PretrainRecipe

NAMES = (*real_target_names(), *phantom_target_names())


@pytest.fixture(scope="module")
def recipe(tiny: PretrainRecipe) -> ModelRecipe:
    return tiny.model


@pytest.fixture(scope="module")
def learner(recipe: ModelRecipe) -> Learner:
    torch.manual_seed(0)
    return Learner(recipe, SIZE, NAMES, torch.full((len(NAMES),), 0.5)).eval()


def test_positions_are_refitted_to_another_grid_and_nothing_else_is(recipe: ModelRecipe) -> None:
    small, large = build_visual(recipe, SIZE).eval(), build_visual(recipe, 2 * SIZE).eval()
    state = small.state_dict()
    state["trunk.pos_embed1"] = torch.linspace(0, 1, 8).expand_as(state["trunk.pos_embed1"]).clone()
    fitted = fit_positions(state, large.state_dict())
    large.load_state_dict(fitted)
    assert fitted["trunk.pos_embed1"].shape[-2:] == (16, 16)
    slope = fitted["trunk.pos_embed1"][0, 0, 3]
    assert bool((slope.diff() > 0).all())  # a ramp stays one
    assert float(slope[8]) == pytest.approx(0.5, abs=0.05)
    for name, tensor in state.items():
        assert ("pos_embed" in name) != torch.equal(fitted[name], tensor) or fitted[name] is tensor, name
    same = fit_positions(state, small.state_dict())
    assert all(same[name] is tensor for name, tensor in state.items())
    assert large.trunk.forward_features(torch.zeros(1, 3, 2 * SIZE, 2 * SIZE)).shape[-2:] == (4, 4)


def gradients(recipe: ModelRecipe, is_bf16: bool) -> dict[str, Tensor]:
    """Of a loss over the feature map, evaluation mode, so that only the arithmetic differs."""
    torch.manual_seed(0)
    visual = build_visual(recipe, SIZE).eval()
    torch.manual_seed(1)
    for parameter in visual.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0, 0.1)
    films, wanted = torch.randn(4, 3, SIZE, SIZE), torch.randn(4, 128, 2, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        features = visual.trunk.forward_features(films.contiguous(memory_format=torch.channels_last))
    (features.float() * wanted).mean().backward()
    return {name: parameter.grad for name, parameter in visual.trunk.named_parameters() if parameter.grad is not None}


def worst_cosine(recipe: ModelRecipe) -> float:
    exact, half = gradients(recipe, False), gradients(recipe, True)
    return min(float(F.cosine_similarity(exact[name].flatten(), half[name].flatten(), dim=0)) for name in exact)


def test_gradients_in_bfloat16_agree_with_float32(recipe: ModelRecipe) -> None:
    """Some CPUs compute a convolution over patches wrongly in bfloat16; training through it learnt nothing."""
    visual = build_visual(recipe, SIZE)
    assert [type(part.proj) for name, part in visual.trunk.named_children() if "patch_embed" in name] == [PatchConv2d] * 3
    assert len(gradients(recipe, True)) > 40
    assert worst_cosine(recipe) > 0.9


def test_a_wrong_convolution_would_be_seen(recipe: ModelRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PatchConv2d.forward

    def wrong(self: PatchConv2d, x: Tensor) -> Tensor:
        """Reads each channel's weights from its neighbour's place, in bfloat16 only."""
        return right(self, x.roll(1, 1) if torch.is_autocast_enabled("cpu") else x)

    monkeypatch.setattr(PatchConv2d, "forward", wrong)
    assert worst_cosine(recipe) < 0.5


def test_embeddings_are_of_unit_length(learner: Learner) -> None:
    features = learner.feature_map(torch.randn(2, 3, SIZE, SIZE))
    assert features.shape == (2, 128, 2, 2)
    for projected in (learner.project(features.mean((2, 3))), learner.project(features.flatten(2).transpose(1, 2))):
        assert projected.shape[-1] == TEXT.embed_dim
        torch.testing.assert_close(projected.norm(dim=-1), torch.ones(projected.shape[:-1]))


def test_what_few_films_know_counts_more_and_what_is_easy_counts_less() -> None:
    weights = dict(zip(NAMES, target_weights(NAMES).tolist(), strict=True))
    assert weights["effusion"] == 1.0
    assert min(weights["tuberculosis"], weights["bacterial"], weights["child pneumonia"]) > 1.0
    assert max(weights["phantom effusion"], weights["phantom effusion left"], weights["age"], weights["female"]) < 1.0
    assert min(weights.values()) > 0


def test_texts_are_those_of_the_tower(recipe: ModelRecipe, learner: Learner) -> None:
    sentences = ["no effusion", "there is pneumonia of the left lung", "x", "no effusion"]
    text = TextSide(Path(recipe.text_folder), sentences)
    learner.add_text(text)
    tower, tokenizer = load_text_tower(Path(recipe.text_folder))
    asked = [sentences[1], sentences[0], sentences[1]]
    assert torch.equal(text.ids(asked), tokenizer(asked))
    with torch.inference_mode():
        expected = F.normalize(tower(tokenizer(asked)), dim=-1)
        found = learner.project_text(text.pooled(asked))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)  # pooled in bfloat16
    assert learner.text_projection is not None
    assert learner.text_projection.requires_grad
    with pytest.raises(InvalidRequest, match="holds no text tower"):
        load_text_tower(Path(recipe.text_folder) / "nowhere")


def test_prompts_are_drawn_for_every_target_that_has_words() -> None:
    prompts = Prompts(NAMES)
    asked = [NAMES[column] for column in prompts.columns]
    assert "effusion" in asked
    assert "phantom effusion left" in asked
    assert not {"normal", "female", "age", "ap view"} & set(asked)
    positive, negative, patches = prompts.draw(np.random.default_rng(3))
    assert prompts.draw(np.random.default_rng(3)) == (positive, negative, patches)
    assert len(positive) == len(negative) == len(prompts.columns)
    assert len(patches) == len(PHANTOM_FINDINGS)
    assert {*positive, *negative, *patches} <= prompts.sentences
    for name, sentence in zip(asked, negative, strict=True):
        assert name == "bacterial" or "no " in f"{sentence} " or "without" in sentence, (name, sentence)
