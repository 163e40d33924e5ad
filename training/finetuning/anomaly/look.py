"""Films through an anomaly adapter, once: what every section of its report is made of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.tasks.anomaly import BRANCHES, AnomalyHead, Detector, top_mean
from training.finetuning.anomaly.trainee import remember, sampled
from training.manifests.manifest import Row
from training.measuring.metrics import Floats
from training.measuring.scoring import Backbone, Running, read_rows, run_films

FROM_NORMALS = ("memory", "reconstruction")  # the branches that learn from normal films alone


@dataclass(frozen=True, eq=False)
class Looked:
    """N films: scores (N, 4) and maps (N, 4, h, w) of every branch, and patches (N, h, w, D) as memory describes them."""

    scores: Floats
    maps: npt.NDArray[np.float32]
    described: Tensor


@torch.inference_mode()
def look(backbone: Backbone, detector: Detector, rows: Sequence[Row], running: Running) -> Looked:
    """The backbone's tower must carry the adapter's LoRA."""
    scores, maps, described = [], [], []
    for features in run_films(backbone, read_rows(rows, backbone.contract), running):
        output = detector.head(features, backbone.patch_embeddings(features))
        scores.append(output.films.double().cpu().numpy())
        maps.append(output.maps.float().cpu().numpy())
        described.append(detector.head.describe(features).half().cpu())
    return Looked(np.concatenate(scores), np.concatenate(maps), torch.cat(described))


@torch.inference_mode()
def from_few(head: AnomalyHead, normals: Tensor | None, asked: Tensor, seed: int, chunk: int = 32) -> dict[str, Floats]:
    """Scores (N,) of the branches in FROM_NORMALS when memory is that of `normals` alone; None: as the adapter has it.

    normals and asked: patches (N, h, w, D). What is usual where is left out: a handful of films cannot say it.
    """
    learnt = copy.deepcopy(head).cpu()
    if normals is not None:
        remember(learnt, sampled(normals.float().flatten(1, 2), len(normals), seed), seed)
    made: dict[str, list[Tensor]] = {name: [] for name in FROM_NORMALS}
    for start in range(0, len(asked), chunk):
        described = asked[start : start + chunk].float()
        made["memory"].append(top_mean(learnt.distances(described)))
        made["reconstruction"].append(top_mean(learnt.residuals(described)))
    return {name: torch.cat(parts).double().numpy() for name, parts in made.items()}


def heats(detector: Detector, maps: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """(N, 4, h, w) -> (N, h, w) by name: the fused heat, and each branch's own map."""
    return {"fusion": detector.heat(maps)} | {name: maps[:, place] for place, name in enumerate(BRANCHES)}
