"""From a pretraining run to a checkpoint folder in open_clip's own layout, which any open_clip user can open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from foundation.checkpoint import save_checkpoint
from foundation.errors import InvalidRequest
from training.pretraining.learner import ModelRecipe, fit_positions


def open_clip_config(recipe: ModelRecipe) -> dict[str, Any]:
    """The content of open_clip_config.json for this model."""
    text_cfg = json.loads((Path(recipe.text_folder) / "text_cfg.json").read_text())
    return {
        "model_cfg": {
            "embed_dim": recipe.embed_dim,
            "init_logit_bias": 0.0,
            "custom_text": True,
            "vision_cfg": {
                "timm_model_name": recipe.timm_name,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": recipe.image_size,
            },
            "text_cfg": text_cfg,
        },
        "preprocess_cfg": {
            "mean": [recipe.mean] * 3,
            "std": [recipe.std] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def assemble(recipe: ModelRecipe, run: Path, folder: Path) -> Path:
    """Write the towers of a pretraining run as a checkpoint (without passport, gate or decoder); returns the folder."""
    from open_clip.model import CustomTextCLIP

    config = open_clip_config(recipe)
    cfg = config["model_cfg"]
    model = CustomTextCLIP(
        embed_dim=cfg["embed_dim"],
        vision_cfg=cfg["vision_cfg"],
        text_cfg=cfg["text_cfg"],
        init_logit_bias=cfg["init_logit_bias"],
    )
    own = model.state_dict()
    learned = load_file(run / "learner.safetensors")
    text = load_file(Path(recipe.text_folder) / "text.safetensors")
    state = {name: tensor for name, tensor in learned.items() if name.startswith("visual.")} | text
    state["logit_scale"], state["logit_bias"] = learned["logit_scale"], learned["logit_bias"]
    if "text_projection" in learned:
        state["text.text_projection"] = learned["text_projection"]
    model.load_state_dict(fit_positions(state, own))
    _check_size(model.eval(), recipe)
    save_checkpoint(model, config, Path(recipe.text_folder), folder, torch.float16)
    for name in ("text_cfg.json", "text_report.json"):  # of the text tower's own course, not of the tokenizer
        (folder / name).unlink(missing_ok=True)
    return folder


def _check_size(model: Any, recipe: ModelRecipe) -> None:
    """open_clip builds a timm tower at the size it is registered with, whatever the config says."""
    size = recipe.image_size
    try:
        with torch.inference_mode():
            model.encode_image(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError):
        raise InvalidRequest(
            f"open_clip cannot open {recipe.timm_name} at {size} pixels: set model.image_size to the size that timm "
            "registers it with. Stages may be trained at any size.",
            param="image_size",
        ) from None
