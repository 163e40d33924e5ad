"""Half precision on disk: what was learnt is rounded before it is scored, and then stored small without any loss.

    round_to_half(tensors)   in training, in place: what is measured and calibrated afterwards is what will be stored
    stored(tensor)           float16 where that changes no number, else the tensor as it is
    compact(folder)          an adapter that was written in full is written again in half; its figures stay, as they are

PEFT and `files.py` read either type and compute in float32.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.card import CARD, HEAD, WEIGHTS, AdapterCard, sha256_of, verify_folder

FEWEST = 256  # numbers; statistics, priors and biases are fewer: they weigh nothing and stay as they are


@torch.no_grad()
def round_to_half(tensors: Iterable[Tensor]) -> None:
    """Round every float32 tensor of FEWEST numbers or more to what float16 can hold; one that would overflow is left."""
    for tensor in tensors:
        if tensor.dtype == torch.float32 and tensor.numel() >= FEWEST:
            rounded = tensor.half().float()
            if torch.isfinite(rounded).all():
                tensor.copy_(rounded)


def stored(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, as float16 where every number of it survives that."""
    plain = tensor.detach().cpu().contiguous()
    half = plain.half() if plain.dtype == torch.float32 else plain
    return half if torch.equal(half.float(), plain.float()) else plain


def compact(folder: Path) -> AdapterCard:
    """Rewrite the folder with its tensors rounded to float16; a new digest, the same card otherwise."""
    card = verify_folder(folder)
    fresh, old = (folder.with_name(f".{folder.name}.{end}") for end in ("new", "old"))
    shutil.copytree(folder, fresh)
    for name in (WEIGHTS, HEAD):
        tensors = load_file(fresh / name)
        round_to_half(tensors.values())
        save_file({key: stored(tensor) for key, tensor in tensors.items()}, fresh / name, metadata={"format": "pt"})
    card = replace(card, files={name: sha256_of(fresh / name) for name in card.files})
    (fresh / CARD).write_text(card.to_json(), encoding="utf-8")
    os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old)
    return card
