"""The baseline for masks: MONAI's U-Net from scratch, on exactly the rows that an adapter learnt from.

Same augmentation, losses and choice of the epoch as the adapter; no pretrained weight, no prompt. What it draws is kept on
disk under the digest of rows and settings: nothing is trained twice, and a changed row is a new digest.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.tasks.segmentation import SegmentationOutput
from foundation.preprocess import InputContract
from training.finetuning.segmentation.masks import MaskedFilms, class_names, load_masked
from training.finetuning.segmentation.recipe import SegmentationRecipe
from training.finetuning.segmentation.trainee import SegmentationTrainee
from training.finetuning.trunk_cache import film_cache, to_pixels
from training.loop import Loop, ParameterGroup
from training.loop_config import LoopConfig
from training.manifests.manifest import Row, rows_digest
from training.whole_file import whole

NAME = "U-Net"
CHANNELS = (16, 32, 64, 128)
RATE = 2e-3
EPOCHS = 30
Chances = npt.NDArray[np.float32]


class PlainUNet(nn.Module):
    """MONAI's residual U-Net: a grey film to K masks at the film's own size."""

    def __init__(self, classes: int) -> None:
        from monai.networks.nets import UNet

        super().__init__()
        strides = (2,) * (len(CHANNELS) - 1)
        self.net = UNet(2, 1, classes, CHANNELS, strides, num_res_units=2)

    def draw(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K, S, S) logits."""
        masks: Tensor = self.net(pixels[:, :1])
        return masks

    def forward(self, batch: Mapping[str, Any]) -> SegmentationOutput:
        """At half the size, as the adapter is trained; what is drawn nowhere is not there."""
        masks = F.avg_pool2d(self.draw(batch["pixels"]), 2, ceil_mode=True)
        return SegmentationOutput(masks, masks.amax(dim=(2, 3)), masks)


def unet_chances(
    recipe: SegmentationRecipe,
    contract: InputContract,
    rows: Mapping[str, Sequence[Row]],
    asked: Sequence[Row],
    cache: Path,
    *,
    epochs: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> tuple[Chances, str]:
    """What the U-Net learnt from rows["train"], its epoch chosen on rows["val"], draws in `asked`: (N, K, S, S), and a note."""
    epochs = epochs or EPOCHS
    settings = [
        CHANNELS,
        RATE,
        epochs,
        seed,
        asdict(contract),
        asdict(recipe.data),
        asdict(recipe.views),
        recipe.training.batch_size,
    ]
    parts = [rows_digest(part) for part in (rows["train"], rows["val"], asked)]
    key = hashlib.sha256(json.dumps([settings, parts], default=str).encode()).hexdigest()[:20]
    target = cache / f"unet-{key}.npz"
    if not target.is_file():
        start = time.process_time()
        chances, best = _train(recipe, contract, rows, asked, cache / f"unet-{key}", epochs, seed)
        note = f"{sum(c.numel() for c in PlainUNet(1).parameters()):,} weights from scratch, epoch {best + 1} of {epochs}"
        note += f", {len(rows['train'])} films, {time.process_time() - start:.0f} s of processor time"
        log(f"{NAME}: {note}")
        with whole(target) as partial:
            np.savez_compressed(partial, chances=chances.astype(np.float16), note=np.array(note))
    with np.load(target, allow_pickle=False) as kept:
        return kept["chances"].astype(np.float32), str(kept["note"])


def _train(
    recipe: SegmentationRecipe,
    contract: InputContract,
    rows: Mapping[str, Sequence[Row]],
    asked: Sequence[Row],
    folder: Path,
    epochs: int,
    seed: int,
) -> tuple[Chances, int]:
    films = {split: _load(recipe, contract, rows[split], folder) for split in ("train", "val")}
    trainee = SegmentationTrainee(
        films,
        contract,
        recipe.views.strength,
        batch_size=recipe.training.batch_size,
        patient_balance=recipe.data.patient_balance,
        blanks=recipe.views.blanks,
        seed=seed,
    )
    torch.manual_seed(seed)
    model = PlainUNet(len(class_names(recipe.data.masks)))
    groups = [ParameterGroup("all", list(model.parameters()), RATE)]
    config = LoopConfig(epochs=epochs, monitor="dice", patience=None, seed=seed, cpu=True)
    report = Loop(trainee, model, groups, config, folder / "loop", is_quiet=True).run(resume=True)
    return draw_all(
        model, film_cache([row.image for row in asked], contract, folder, is_quiet=True), contract
    ), report.best_epoch


def _load(recipe: SegmentationRecipe, contract: InputContract, rows: Sequence[Row], folder: Path) -> MaskedFilms:
    pixels = film_cache([row.image for row in rows], contract, folder, is_quiet=True)
    return load_masked(rows, recipe.data.masks, pixels, contract)


@torch.inference_mode()
def draw_all(model: PlainUNet, films: npt.NDArray[np.uint8], contract: InputContract, batch_size: int = 16) -> Chances:
    """(N, S, S, C) films -> (N, K, S, S) probabilities."""
    model.eval()
    starts = range(0, len(films), batch_size)
    parts = [model.draw(to_pixels(np.asarray(films[start : start + batch_size]), contract)).sigmoid() for start in starts]
    return np.asarray(torch.cat(parts).float().numpy())
