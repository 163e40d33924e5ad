"""The rewritten towers against plain open_clip, and what a backbone promises: features, patches, targets, gradients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.backbone import Backbone
from foundation.blocks import PatchConv2d, use_patch_convolutions
from foundation.checkpoint import build_open_clip, open_checkpoint, read_config
from foundation.errors import CheckpointRefused
from foundation.tiny import LAYOUTS, make_tiny_checkpoint, tiny_config
from foundation.tokens import open_tokenizer
from foundation.towers.rewriting import image_tower
from foundation.towers.tower import block_index

SENTENCES = ["There is a LARGE left pleural effusion.", "Normal heart", "x"]
BLOCKS = {"open_clip": 4, "resnet": 4, "visformer": 8, "biomedclip": 6, "siglip": 4}
LEVELS = {
    "open_clip": [(32, 4, 4)] * 4,
    "resnet": [(256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2)],
    "visformer": [(96, 28, 28), (192, 14, 14), (192, 14, 14), (384, 7, 7)],
    "biomedclip": [(64, 10, 10)] * 4,
    "siglip": [(48, 4, 4)] * 4,
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(layout: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / layout, layout)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return open_checkpoint(folder).backbone


@pytest.fixture(scope="module")
def plain(folder: Path) -> tuple[nn.Module, Any]:
    """The same folder in open_clip itself: model in evaluation mode, tokenizer."""
    import open_clip

    config = read_config(folder)
    if "hf_model_name" in config["model_cfg"]["text_cfg"]:  # open_clip would ask the hub: point it at the folder
        folder = Path(shutil.copytree(folder, folder.with_name(folder.name + "_pointed")))
        config["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder)
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False)
    return model.eval(), open_clip.get_tokenizer(f"local-dir:{folder}")


def pixels_for(backbone: Backbone, count: int = 3) -> Tensor:
    size = backbone.contract.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_images_embed_as_in_plain_open_clip(backbone: Backbone, plain: tuple[Any, Any]) -> None:
    pixels = pixels_for(backbone)
    expected = plain[0].encode_image(pixels, normalize=True)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the pictures are told apart at all
    torch.testing.assert_close(backbone.encode_image(pixels).embedding, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_texts_embed_as_in_plain_open_clip(backbone: Backbone, plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    expected = model.encode_text(tokenizer(SENTENCES), normalize=True)
    torch.testing.assert_close(backbone.encode_text(SENTENCES), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.encode_text(SENTENCES, batch_size=2), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_are_open_clips(backbone: Backbone, plain: tuple[Any, Any], layout: str) -> None:
    pixels, (model, tokenizer) = pixels_for(backbone), plain
    expected, _ = model.get_logits(pixels, tokenizer(SENTENCES))
    ours = backbone.logits(backbone.encode_image(pixels).embedding, backbone.encode_text(SENTENCES))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert backbone.is_sigmoid == (layout in ("resnet", "visformer", "siglip"))


@torch.no_grad()
def test_one_forward_yields_tokens_and_levels(backbone: Backbone, layout: str) -> None:
    features = backbone.encode_image(pixels_for(backbone))
    assert [tuple(level.shape[1:]) for level in features.levels] == LEVELS[layout]
    assert features.grid == LEVELS[layout][-1][1:]
    assert backbone.width == LEVELS[layout][-1][0]
    assert torch.equal(features.levels[-1].flatten(2).transpose(1, 2), features.tokens)
    torch.testing.assert_close(features.embedding.norm(dim=-1), torch.ones(3))


@torch.no_grad()
def test_a_batch_is_its_pictures_one_by_one(backbone: Backbone) -> None:
    pixels = pixels_for(backbone)
    together = backbone.encode_image(pixels)
    for index in range(3):
        alone = backbone.encode_image(pixels[index : index + 1])
        torch.testing.assert_close(together.embedding[index : index + 1], alone.embedding, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.tokens[index : index + 1], alone.tokens, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_lower_blocks_can_be_run_once_and_shared(backbone: Backbone) -> None:
    pixels, tower = pixels_for(backbone, 1), backbone.image_tower
    whole = tower(pixels)
    for cut in (0, 1, len(tower.blocks) // 2, len(tower.blocks)):
        split = tower.finish(tower.run(tower.run(tower.embed(pixels), stop=cut), start=cut))
        assert torch.equal(split.embedding, whole.embedding)
        assert len(split.levels) == 4


def test_targets_are_linear_maps_of_the_blocks_alone(backbone: Backbone, layout: str) -> None:
    modules = dict(backbone.image_tower.named_modules())
    targets = backbone.lora_targets()
    of_a_block = 3 if layout == "resnet" else 4
    assert len(targets) == of_a_block * BLOCKS[layout]
    assert all(type(modules[name]) is nn.Linear for name in targets)
    assert [block_index(name) for name in targets] == sorted(list(range(BLOCKS[layout])) * of_a_block)
    assert not any("patch_embed" in name or "attn_pool" in name or "head" in name for name in targets)
    text_modules = dict(backbone.text_tower.named_modules())
    assert backbone.text_lora_targets()
    assert all(type(text_modules[name]) is nn.Linear for name in backbone.text_lora_targets())


def test_gradients_reach_every_target(folder: Path) -> None:
    fresh = open_checkpoint(folder).backbone
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    for tower, targets, embed in (
        (fresh.image_tower, fresh.lora_targets(), lambda: fresh.encode_image(pixels_for(fresh)).embedding),
        (fresh.text_tower, fresh.text_lora_targets(), lambda: fresh.encode_text(SENTENCES)),
    ):
        weights = {name: tower.get_submodule(name).weight.requires_grad_() for name in targets}
        (embed() * torch.randn(3, fresh.embed_dim)).sum().backward()
        unreached = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.abs().max() > 0]
        assert unreached == []


@torch.no_grad()
def test_training_mode_leaves_the_statistics_alone(folder: Path) -> None:
    fresh = open_checkpoint(folder).backbone
    pixels = pixels_for(fresh)
    before = fresh.encode_image(pixels).embedding
    fresh.image_tower.train()
    for _ in range(2):
        torch.testing.assert_close(fresh.encode_image(pixels + 0).embedding, before)


@torch.no_grad()
def test_bfloat16_stays_near_float32(folder: Path, backbone: Backbone) -> None:
    half = open_checkpoint(folder, dtype=torch.bfloat16).backbone
    features = half.encode_image(pixels_for(backbone))
    assert (features.tokens.dtype, features.embedding.dtype) == (torch.bfloat16, torch.float32)
    expected = backbone.encode_image(pixels_for(backbone)).embedding
    torch.testing.assert_close(features.embedding, expected, atol=0.03, rtol=0)
    torch.testing.assert_close(half.encode_text(SENTENCES), backbone.encode_text(SENTENCES), atol=0.03, rtol=0)


@torch.no_grad()
def test_patches_lie_in_the_embedding_space(backbone: Backbone, layout: str) -> None:
    features = backbone.encode_image(pixels_for(backbone))
    patches = backbone.patch_embeddings(features)
    assert patches.shape == (3, features.tokens.shape[1], backbone.embed_dim)
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(patches.shape[:2]))
    tower: Any = backbone.image_tower
    if layout in ("resnet", "visformer"):  # pooling is the mean, so the patches' mean is the picture
        mean = F.normalize(tower.embed_patches(features.tokens).mean(dim=1), dim=-1)
        torch.testing.assert_close(mean, features.embedding, atol=1e-5, rtol=0)
    if layout == "open_clip":  # the final norm and projection at each place
        expected = F.normalize(tower.visual.ln_post(features.tokens) @ tower.visual.proj, dim=-1)
        torch.testing.assert_close(patches, expected, atol=1e-5, rtol=0)
    if layout == "siglip":  # one token alone through the attention pool: its value path
        pool = tower.visual.trunk.attn_pool
        expected = F.normalize(pool(tower.visual.trunk.norm(features.tokens[0])[:, None]), dim=-1)
        torch.testing.assert_close(patches[0], expected, atol=1e-5, rtol=0)


def test_a_model_in_training_is_read_and_left_as_it_is(folder: Path, backbone: Backbone) -> None:
    config = read_config(folder)
    if "hf_model_name" in config["model_cfg"]["text_cfg"]:
        config["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder)
    model = build_open_clip(config).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokenizer = open_tokenizer(folder, config["model_cfg"]["text_cfg"])
    view = Backbone.from_open_clip(config, model.state_dict(), tokenizer)
    view.image_tower.blocks[0].requires_grad_()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        expected = model.eval().encode_image(pixels_for(backbone), normalize=True)  # type: ignore[operator]
        ours = view.encode_image(pixels_for(backbone)).embedding
    torch.testing.assert_close(ours, expected, atol=5e-4, rtol=0)  # weights fresh from their draw magnify rounding


def test_siglip_texts_are_padded_to_the_full_context(tmp_path: Path) -> None:
    siglip = open_checkpoint(make_tiny_checkpoint(tmp_path, "siglip")).backbone
    assert siglip.tokenizer(["x"]).shape == (1, 64)


def test_no_text_is_no_rows(backbone: Backbone) -> None:
    assert backbone.encode_text([]).shape == (0, backbone.embed_dim)


def test_patch_convolutions_equal_the_plain_ones_in_float32_and_stay_right_in_bfloat16() -> None:
    """The plain one returned noise in bfloat16 on CPUs with AMX, and training through it learnt nothing."""
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Conv2d(16, 96, 4, 4), nn.Conv2d(96, 8, 3, padding=1))
    pixels = torch.randn(2, 16, 32, 32)
    expected = tower[0](pixels)
    names = list(tower.state_dict())
    use_patch_convolutions(tower)
    assert [type(part) for part in tower] == [PatchConv2d, nn.Conv2d]
    assert list(tower.state_dict()) == names
    torch.testing.assert_close(tower[0](pixels), expected, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(tower[0](pixels).float(), expected, atol=0.05, rtol=0)


def test_towers_that_cannot_be_adapted_are_refused() -> None:
    config = tiny_config("open_clip", vocab_size=100, eos_id=3)
    config["model_cfg"]["vision_cfg"]["qk_norm"] = True
    with pytest.raises(CheckpointRefused, match="CustomResidualAttentionBlock"):
        image_tower(build_open_clip(config, custom_text=True).visual)
    config["model_cfg"]["vision_cfg"] = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "image_size": 64}
    with pytest.raises(CheckpointRefused, match="ModifiedResNet"):
        image_tower(build_open_clip(config, custom_text=True).visual)
