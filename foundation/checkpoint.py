"""Checkpoints: from a folder in open_clip's layout, or a hub id, to a Backbone; and back to a folder.

    where            "bundled" | folder | "hf-hub:ORG/NAME"
      -> folder      found, or taken from the hub's cache, or fetched (safetensors, JSON and tokenizer files only)
      -> checked     nothing pickled, nothing executable                         (folder_check.py)
      -> bound       every tensor to its place: none missing, none left over
      -> rewritten   towers of plain linear maps                                 (towers/)
      -> passport    what it is; a passport.json beside the weights is verified  (passport.py)

    FOLDER/  open_clip_config.json  open_clip_model.safetensors  tokenizer.json  tokenizer_config.json  ...
             [passport.json]  [decoder/  projector.safetensors]

The same folder opens in open_clip itself: `open_clip.create_model_from_pretrained("local-dir:FOLDER")`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundation.backbone import Backbone, require_finite
from foundation.binding import TOLERATED, build_open_clip
from foundation.errors import CheckpointRefused
from foundation.folder_check import (
    CONFIG_FILE,
    TOKENIZER_SUFFIXES,
    WEIGHTS_FILE,
    check_folder,
    find_weights,
    fingerprint,
    read_json,
)
from foundation.passport import PASSPORT_FILE, Passport, describe, verify
from foundation.sources import locate, resolve_text_sources
from foundation.tokens import open_tokenizer


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint. `folder` is where it lies; `decoder/` and the projector, if any, are opened from there."""

    backbone: Backbone
    passport: Passport
    folder: Path

    @property
    def has_decoder(self) -> bool:
        return (self.folder / "decoder" / "config.json").is_file()


def open_checkpoint(where: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Open "bundled", a folder, or "hf-hub:ORG/NAME" (without network once cached).

    The towers run on `device` in `dtype`. Raises CheckpointNotFound, or CheckpointRefused naming the file or tensor.
    """
    location = locate(str(where))
    folder = location.folder
    check_folder(folder, ignore_foreign_files=location.is_hub)
    config = read_config(folder)
    weights = find_weights(folder)
    sources = resolve_text_sources(folder, config, may_fetch=location.is_hub)
    tensors = read_tensors(weights)
    backbone = Backbone.from_open_clip(
        sources.apply(config),
        tensors,
        open_tokenizer(sources.tokenizer, config["model_cfg"]["text_cfg"]),
        fingerprint=fingerprint(weights, config),
    )
    require_finite(backbone)
    passport = describe(folder, config, backbone, tensors_bound=len(set(tensors) - TOLERATED))
    passport = verify(folder, passport)
    return Checkpoint(backbone.to(device=device, dtype=dtype), passport, folder)


def write_passport(folder: Path, licence: str) -> Passport:
    """Open the folder as it stands, then record what it is in its passport.json; later openings are held to it."""
    (folder / PASSPORT_FILE).unlink(missing_ok=True)
    passport = replace(open_checkpoint(folder).passport, licence=licence)
    (folder / PASSPORT_FILE).write_text(passport.to_json(), encoding="utf-8")
    return passport


def read_config(folder: Path) -> dict[str, Any]:
    """The content of open_clip_config.json, its two parts present."""
    config = read_json(folder / CONFIG_FILE)
    model_cfg = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model_cfg, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(model_cfg):
        raise CheckpointRefused(
            f"`{CONFIG_FILE}` needs a `model_cfg` with `embed_dim`, `vision_cfg` and `text_cfg`.", param=CONFIG_FILE
        )
    return {"preprocess_cfg": {}, **config}


def read_tensors(weights: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(weights))
    except SafetensorError as error:
        raise CheckpointRefused(
            f"`{weights.name}` is not a whole safetensors file. Get the file again.", param=weights.name
        ) from error


def save_checkpoint(
    model: nn.Module,
    config: Mapping[str, Any],
    tokenizer_folder: Path | None,
    folder: Path,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write an open_clip model (plain, not rewritten) as a checkpoint folder.

    Matrices are stored in `dtype`; vectors and scalars (norms, their statistics, logit scale), being small and wide in
    range, in float32. The tokenizer files are copied; `config` must then name a tokenizer, or open_clip would fall
    back to its own vocabulary without a word.
    """
    from safetensors.torch import save_file

    if tokenizer_folder is not None and not config["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
        raise CheckpointRefused(
            "A checkpoint with a tokenizer of its own needs `text_cfg.hf_tokenizer_name` in its config.",
            param="hf_tokenizer_name",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}, folder / WEIGHTS_FILE)
    if tokenizer_folder is not None and tokenizer_folder.resolve() != folder.resolve():
        for path in sorted(tokenizer_folder.iterdir()):
            if path.suffix in TOKENIZER_SUFFIXES and path.name not in (CONFIG_FILE, PASSPORT_FILE):
                shutil.copyfile(path, folder / path.name)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.to(dtype if tensor.ndim > 1 else torch.float32)
    return tensor.contiguous().clone()


__all__ = ["Checkpoint", "build_open_clip", "open_checkpoint", "read_config", "save_checkpoint", "write_passport"]
