"""Where a course may begin besides at random: the towers of a checkpoint that stands already.

    take_text_tower   checkpoint -> the text folder of `text/language.py`, so that nothing is distilled again
    start_tensors     checkpoint -> what `learner.py` calls its own of it: image tower, text projection, scale and bias
    decoder_folder    checkpoint -> itself, if it has a decoder whose language `decoder/instruct.py` can go on from

Heads that only training needs are no part of a checkpoint and begin anew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from foundation.checkpoint import read_config, read_tensors
from foundation.decoder_folder import DECODER_FOLDER
from foundation.errors import InvalidRequest
from foundation.sources import locate

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def take_text_tower(checkpoint: str, folder: Path) -> Path:
    """Write the checkpoint's text tower and tokenizer as a text folder, unless one is there; returns the folder."""
    if (folder / "text.safetensors").is_file():
        return folder
    held = locate(checkpoint).folder
    config = read_config(held)["model_cfg"]["text_cfg"]
    if "hf_model_name" in config:
        raise InvalidRequest(
            f"The text tower of {held.name!r} is not of open_clip's own layout; leave `start` out.", param="start"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (held / name).is_file():
            shutil.copyfile(held / name, folder / name)
    (folder / "text_cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = read_tensors(held / "open_clip_model.safetensors")
    text = {name: tensor.float() for name, tensor in tensors.items() if name.startswith("text.")}
    save_file(text, folder / "text.safetensors")
    return folder


def start_tensors(checkpoint: str) -> dict[str, Tensor]:
    """The checkpoint's tensors under a learner's names, in float32 where they are not counters."""
    tensors = read_tensors(locate(checkpoint).folder / "open_clip_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(("visual.", "logit_"))}
    kept["text_projection"] = tensors["text.text_projection"]
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in kept.items()}


def decoder_folder(checkpoint: str) -> Path | None:
    """The folder of a checkpoint that has a decoder; None where it has none, or where no checkpoint is named."""
    held = locate(checkpoint).folder if checkpoint else None
    return held if held is not None and (held / DECODER_FOLDER / "config.json").is_file() else None
