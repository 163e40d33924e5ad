"""Features: what the adapted tower and the text tower say of the films and notes of some cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from adapters.tasks.fusion_head import describe
from training.finetuning.fusion.data import Case
from training.finetuning.fusion.fit import FilmFeatures
from training.finetuning.fusion.invariance import SteadyTower
from training.finetuning.fusion.recipe import Job
from training.finetuning.trunk_cache import film_cache, to_pixels


@dataclass(frozen=True, eq=False)
class Features:
    """Of some cases: their films' features, one behind the other, how many each has, and embeddings of their notes."""

    films: FilmFeatures
    counts: tuple[int, ...]
    notes: tuple[npt.NDArray[np.float32] | None, ...]
    level_width: int

    @classmethod
    @torch.no_grad()
    def read(cls, job: Job, model: SteadyTower, cases: Sequence[Case]) -> Features:
        backbone = job.backbone
        pixels = film_cache(film_paths(cases), backbone.contract, job.cache, is_quiet=job.is_quiet)
        device, described, tokens, level_width = next(model.parameters()).device, [], [], 0
        for start in range(0, len(pixels), 16):
            shown = to_pixels(np.asarray(pixels[start : start + 16]), backbone.contract).to(device)
            features = model({"pixels": shown})
            described.append(describe(features).cpu())
            tokens.append(features.tokens.float().cpu())
            level_width = int(features.levels[-2].shape[1])
        notes = [None if case.note is None else backbone.encode_text([case.note])[0].float().cpu().numpy() for case in cases]
        return cls(
            FilmFeatures(torch.cat(described).numpy(), torch.cat(tokens).numpy()),
            tuple(len(case.rows) for case in cases),
            tuple(notes),
            level_width,
        )


def film_paths(cases: Sequence[Case]) -> list[Path]:
    return [row.image for case in cases for row in case.rows]
