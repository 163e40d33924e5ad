"""An open_clip checkpoint with a native image tower, rewritten as the folder of a transformers `CLIPModel`.

The image tower is carried over weight by weight, layer scales folded into the projections behind them, so that it costs
and gives the same. The text tower is left random: no text is asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizerFast,
    CLIPVisionConfig,
)

Weights = dict[str, torch.Tensor]


def write_clip_folder(checkpoint: Path, folder: Path) -> Path:
    """Raises SystemExit for a tower that is not open_clip's own ViT."""
    settings = json.loads((checkpoint / "open_clip_config.json").read_text(encoding="utf-8"))
    tower = settings["model_cfg"]["vision_cfg"]
    if "timm_model_name" in tower or not isinstance(tower.get("layers"), int):
        raise SystemExit("the image tower is not open_clip's own ViT, and infinity-emb has no layout for it")
    model = CLIPModel(_config(settings["model_cfg"], tower))
    weights = _image_weights(load_file(checkpoint / "open_clip_model.safetensors"), tower["layers"])
    missing, unexpected = model.load_state_dict(weights, strict=False)
    lost = [name for name in missing if name.startswith(("vision_model", "visual_projection"))]
    if unexpected or lost:
        raise SystemExit(f"the image tower cannot be carried over: {unexpected or lost}")
    model.eval().save_pretrained(folder)
    _processor(folder, settings["preprocess_cfg"], tower["image_size"]).save_pretrained(folder)
    return folder


def _config(model: dict[str, Any], tower: dict[str, Any]) -> CLIPConfig:
    width = tower["width"]
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * tower.get("mlp_ratio", 4.0)),
        num_hidden_layers=tower["layers"],
        num_attention_heads=width // tower.get("head_width", 64),
        image_size=tower["image_size"],
        patch_size=tower["patch_size"],
        hidden_act="quick_gelu" if model.get("quick_gelu") else "gelu",
        projection_dim=model["embed_dim"],
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=256, max_position_embeddings=32, projection_dim=model["embed_dim"], **small)
    return CLIPConfig.from_text_vision_configs(text, vision, projection_dim=model["embed_dim"])


def _image_weights(given: Weights, layers: int) -> Weights:
    one = {
        "visual.class_embedding": "embeddings.class_embedding",
        "visual.positional_embedding": "embeddings.position_embedding.weight",
        "visual.conv1.weight": "embeddings.patch_embedding.weight",
        **{f"visual.ln_pre.{part}": f"pre_layrnorm.{part}" for part in ("weight", "bias")},
        **{f"visual.ln_post.{part}": f"post_layernorm.{part}" for part in ("weight", "bias")},
    }
    found = {f"vision_model.{new}": given[old] for old, new in one.items()}
    found["visual_projection.weight"] = given["visual.proj"].T.contiguous()
    for number in range(layers):
        found |= _block(given, f"visual.transformer.resblocks.{number}.", f"vision_model.encoder.layers.{number}.")
    return found


def _block(given: Weights, old: str, new: str) -> Weights:
    found: Weights = {}
    for part in ("weight", "bias"):
        query, key, value = given[f"{old}attn.in_proj_{part}"].chunk(3)
        found |= {f"{new}self_attn.{name}_proj.{part}": each for name, each in zip("qkv", (query, key, value), strict=True)}
        found[f"{new}self_attn.out_proj.{part}"] = _scaled(given, f"{old}attn.out_proj.{part}", f"{old}ls_1.gamma")
        found[f"{new}mlp.fc1.{part}"] = given[f"{old}mlp.c_fc.{part}"]
        found[f"{new}mlp.fc2.{part}"] = _scaled(given, f"{old}mlp.c_proj.{part}", f"{old}ls_2.gamma")
        found |= {f"{new}layer_norm{number}.{part}": given[f"{old}ln_{number}.{part}"] for number in (1, 2)}
    return {name: weight.contiguous() for name, weight in found.items()}


def _scaled(given: Weights, name: str, scale: str) -> torch.Tensor:
    """A projection's weight or bias with the layer scale behind it folded in."""
    weight = given[name]
    gamma = given.get(scale)
    if gamma is None:
        return weight
    return weight * (gamma[:, None] if weight.ndim == 2 else gamma)


def _processor(folder: Path, preprocess: dict[str, Any], size: int) -> CLIPProcessor:
    """With a tokenizer of letters, which the layout asks for."""
    pictures = CLIPImageProcessor(
        size={"height": size, "width": size},
        do_center_crop=False,
        image_mean=preprocess["mean"],
        image_std=preprocess["std"],
    )
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    words = {word: number for number, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    return CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)
