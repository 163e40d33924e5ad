"""Between open_clip's models and ours: build one from a config, and bind a file's tensors to it, each by name.

`checkpoint.py` reads the files; `towers/` rewrites what is built here.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from foundation.errors import CheckpointRefused
from foundation.folder_check import CONFIG_FILE
from foundation.preprocess import InputContract

TOLERATED = frozenset({"text.transformer.embeddings.position_ids"})  # a buffer old transformers saved; it says 0..T-1


def build_open_clip(config: Mapping[str, Any], *, custom_text: bool | None = None) -> nn.Module:
    """A plain open_clip model with random weights, for training; `config` is the content of open_clip_config.json.

    custom_text: True makes the text tower a module of its own (`text.*`) whatever the config says.
    """
    import open_clip.model

    model_cfg = deepcopy(dict(config["model_cfg"]))
    if "multimodal_cfg" in model_cfg:
        raise CheckpointRefused("CoCa checkpoints are not supported. Use a CLIP or SigLIP one.", param="multimodal_cfg")
    wants_custom = bool(model_cfg.pop("custom_text", False) or model_cfg["text_cfg"].get("hf_model_name"))
    model_cfg["vision_cfg"]["timm_model_pretrained"] = False
    model_cfg["text_cfg"]["hf_model_pretrained"] = False
    kind = open_clip.model.CustomTextCLIP if wants_custom or custom_text else open_clip.model.CLIP
    try:
        model: nn.Module = kind(**model_cfg)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointRefused(
            f"`{CONFIG_FILE}` does not describe a model that open_clip can build. Check its `model_cfg`.",
            param=CONFIG_FILE,
        ) from error
    return model


def bind(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state` into an open_clip CustomTextCLIP; refuse, by name, what is missing, extra or misshapen."""
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_to_custom_text_state_dict(dict(state)) if "positional_embedding" in state else dict(state)
    expected = model.state_dict()
    for name in set(state) & TOLERATED - set(expected):
        del state[name]
    for kind, names in (("lacks", set(expected) - set(state)), ("has the unexpected", set(state) - set(expected))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointRefused(
                f"The checkpoint {kind} tensor `{min(names)}`{more}: weights and config do not belong together.",
                param=min(names),
            )
    for name, tensor in expected.items():
        if state[name].numel() == tensor.numel() == 1:  # logit scale and bias are saved as () or (1,)
            state[name] = state[name].reshape(tensor.shape)
        if state[name].shape != tensor.shape:
            raise CheckpointRefused(
                f"Tensor `{name}` has shape {tuple(state[name].shape)}, the config wants {tuple(tensor.shape)}.",
                param=name,
            )
    model.load_state_dict(state)


def input_contract(config: Mapping[str, Any], model: Any) -> InputContract:
    """What the model eats, as open_clip would preprocess for it."""
    size = model.visual.image_size
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows != columns:
        raise CheckpointRefused(f"The model eats {rows} x {columns} pixels; only square input is supported.")
    return InputContract.from_open_clip(config.get("preprocess_cfg", {}), int(rows))
