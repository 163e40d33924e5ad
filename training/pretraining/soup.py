"""A soup: one checkpoint whose towers are the mean of several (model soups, Wortsman 2022).

    python -m training.pretraining.soup OUT FOLDER FOLDER...

Courses that part from the same weights and differ in seed or stage end close enough together that the mean of their weights
ranks films better than any of them, at the cost of one. Batch statistics are averaged with the rest. Gate and decoder, taught
by other towers, are not taken along: make them anew (`training.trust.fit_gate`, `training.pretraining.teach`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from foundation.checkpoint import open_checkpoint, read_config, read_tensors, write_passport
from foundation.decoder_folder import DECODER_FOLDER, PROJECTOR_FILE
from foundation.errors import InvalidRequest
from foundation.folder_check import WEIGHTS_FILE, visible_files
from foundation.gate import GATE_FILE
from foundation.passport import PASSPORT_FILE

_LEFT = {DECODER_FOLDER, PROJECTOR_FILE, GATE_FILE, PASSPORT_FILE, WEIGHTS_FILE}


def make_soup(folders: Sequence[Path], out: Path) -> Path:
    """Write the mean of the checkpoints in `folders` to `out`, with its passport; returns it.

    A folder named twice counts twice. Raises InvalidRequest where they are not checkpoints of one model, or `out` holds
    something.
    """
    if len(folders) < 2:
        raise InvalidRequest("A soup needs at least two checkpoints.", param="folders")
    if out.exists() and any(out.iterdir()):
        raise InvalidRequest(f"{out.name!r} holds something already; name an empty folder.", param="out")
    licences = sorted({open_checkpoint(str(folder)).passport.licence for folder in folders})
    if len(licences) > 1:
        raise InvalidRequest(f"The checkpoints have different licences: {', '.join(licences)}.", param="folders")
    if any(read_config(folder) != read_config(folders[0]) for folder in folders):
        raise InvalidRequest("The checkpoints are of different models: their open_clip_config.json differ.", param="folders")
    mean = mean_tensors([read_tensors(folder / WEIGHTS_FILE) for folder in folders])
    out.mkdir(parents=True, exist_ok=True)
    for path in visible_files(folders[0]):
        place = path.relative_to(folders[0])
        if place.parts[0] not in _LEFT:
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / place)
    save_file(mean, out / WEIGHTS_FILE)
    write_passport(out, licences[0])
    return out


def mean_tensors(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor over the states, in float32 and stored as the first one is; counters are the first one's.

    Raises InvalidRequest where they differ in names or shapes.
    """
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    odd = sorted({name for each in shapes for name, shape in each.items() if any(one.get(name) != shape for one in shapes)})
    if odd:
        raise InvalidRequest(f"The checkpoints are of different models: {odd[0]!r} is not alike in all.", param="folders")
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.pretraining.soup", description="Average checkpoints' towers.")
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    chosen = parser.parse_args()
    print(make_soup(chosen.folders, chosen.out))


if __name__ == "__main__":
    main()
