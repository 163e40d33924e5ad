"""Zero-shot on phantoms, whose truth is exact: which findings are there, on which side, and where on the film.

Phantoms of fixed seeds that no training uses. A side is told in two ways: by the heat map (the half of the film whose
patches are closest to the finding's sentences) and by the film's embedding ("left effusion" against "right effusion").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from foundation.phantom import FINDINGS, Phantom, make_phantom
from foundation.prompts import prompt_pair, sided_pair
from training.measuring import metrics
from training.measuring.metrics import Floats, PatientBootstrap, Statistic
from training.measuring.report import Measure, Section
from training.measuring.scoring import Backbone, Film, Running, directions, embed_texts, run_films

FIRST_SEED = 20_000_000
LATERAL = ("effusion", "pneumothorax", "nodule", "mass", "consolidation", "atelectasis")
SIDES = ("left", "right")
TOP_SHARE = 0.1  # of the patches of a half: small nodules must not drown in the mean


@dataclass(frozen=True, eq=False)
class PhantomScores:
    """N phantoms: finding scores (N, K), sided scores (N, L) larger for left, and what the heat maps told."""

    truth: npt.NDArray[np.bool_]  # (N, K)
    scores: npt.NDArray[np.float64]  # (N, K)
    sides: npt.NDArray[np.str_]  # (N, L): left, right, or "" where the finding is absent or on both sides
    sided_scores: npt.NDArray[np.float64]  # (N, L)
    map_scores: npt.NDArray[np.float64]  # (N, L): left half less right half of the patient
    peak_hits: npt.NDArray[np.float64]  # (N, L): 1 where the map's peak lies in the finding, NaN where it is absent


def phantom_section(backbone: Backbone, count: int, running: Running, resamples: int, seed: int) -> Section:
    """Findings AUROC, side accuracy and pointing accuracy on `count` phantoms."""
    scored = score_phantoms(backbone, count, running)
    draws = PatientBootstrap([str(index) for index in range(count)], resamples, seed)
    measures = _measures("auroc", "zero-shot", draws, FINDINGS, [_auroc(scored, k) for k in range(len(FINDINGS))])
    for name, values in (
        ("side by heat map", _side_hits(scored.map_scores, scored.sides)),
        ("side by sentence", _side_hits(scored.sided_scores, scored.sides)),
        ("peak in finding", scored.peak_hits),
    ):
        measures += _measures(name, "zero-shot", draws, LATERAL, [_mean(values[:, k]) for k in range(len(LATERAL))])
    note = (
        f"{count} phantoms, seeds from {FIRST_SEED}, used in no training. Chance is 0.5 for a side; "
        "sides are scored where a finding is on one side only."
    )
    return Section("Phantoms: findings and where they are", note, tuple(measures), columns=("name",))


@torch.inference_mode()
def score_phantoms(backbone: Backbone, count: int, running: Running) -> PhantomScores:
    """Run `count` phantoms through the image tower, once each."""
    ask = directions(backbone, [prompt_pair(name) for name in FINDINGS])
    ask_side = directions(backbone, [sided_pair(name) for name in LATERAL])
    look = torch.stack([F.normalize(embed_texts(backbone, prompt_pair(name).positive).mean(0), dim=0) for name in LATERAL])
    seen: list[Phantom] = []
    scores, sided, maps = [], [], []
    for features in run_films(backbone, _films(count, backbone.contract.size, seen), running):
        embedding = features.embedding.float().cpu()
        scores.append(embedding @ ask.T)
        sided.append(embedding @ ask_side.T)
        maps.append(heat_maps(backbone, features, look))
    heat = torch.cat(maps).numpy()  # (N, L, h, w)
    masks = [phantom.masks for phantom in seen]
    return PhantomScores(
        truth=np.stack([phantom.label_vector() > 0 for phantom in seen]),
        scores=torch.cat(scores).double().numpy(),
        sides=np.array([[_side(phantom, name) for name in LATERAL] for phantom in seen]),
        sided_scores=torch.cat(sided).double().numpy(),
        map_scores=_left_less_right(heat),
        peak_hits=np.array([_peaks(maps_of, masks_of) for maps_of, masks_of in zip(heat, masks, strict=True)]),
    )


def heat_maps(backbone: Backbone, features: Any, texts: Tensor) -> Tensor:
    """(B, L, h, w): similarity of every patch to each of the texts (L, E)."""
    patches = backbone.patch_embeddings(features).float().cpu()  # (B, N, E)
    height, width = features.grid
    return (patches @ texts.T).transpose(1, 2).reshape(len(patches), len(texts), height, width)


def _films(count: int, size: int, seen: list[Phantom]) -> Iterator[Film]:
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        phantom = make_phantom(seed, size)
        seen.append(phantom)
        yield np.repeat(phantom.film[..., None], 3, axis=-1)


def _side(phantom: Phantom, name: str) -> str:
    side = next((finding.side for finding in phantom.findings if finding.name == name), "")
    return side if side in SIDES else ""


def _left_less_right(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The patient's left is the right half of the film; a middle column belongs to neither."""
    half = heat.shape[-1] // 2
    return _top(heat[..., -half:]) - _top(heat[..., :half])


def _top(part: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    flat = np.sort(part.reshape(*part.shape[:-2], -1).astype(np.float64), axis=-1)
    return np.asarray(flat[..., -max(1, round(TOP_SHARE * flat.shape[-1])) :].mean(axis=-1))


def _peaks(heat: npt.NDArray[np.float32], masks: Mapping[str, npt.NDArray[np.bool_]]) -> list[float]:
    """For each lateral finding 1 where the cell of the map's peak touches its mask, else 0; NaN where it is absent."""
    return [
        _touches(heat[k], masks[name]) if name in masks and masks[name].any() else float("nan")
        for k, name in enumerate(LATERAL)
    ]


def _touches(heat: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    tall, wide = mask.shape[0] / heat.shape[0], mask.shape[1] / heat.shape[1]
    cell = mask[int(row * tall) : int((row + 1) * tall) + 1, int(column * wide) : int((column + 1) * wide) + 1]
    return float(cell.any())


def _side_hits(scores: npt.NDArray[np.float64], sides: npt.NDArray[np.str_]) -> npt.NDArray[np.float64]:
    """1 where the side is told, 0 where not (a tie tells nothing), NaN where there is none to tell."""
    hits = np.where(sides == "left", scores > 0, scores < 0).astype(np.float64)
    return np.where(sides == "", np.nan, hits)


def _auroc(scored: PhantomScores, k: int) -> Statistic:
    return lambda weights: metrics.auroc(scored.scores[:, k], scored.truth[:, k], weights)


def _mean(values: npt.NDArray[np.float64]) -> Statistic:
    def mean(weights: Floats) -> Floats:
        return metrics.weighted_mean(values, weights)

    return mean


def _measures(
    name: str, by: str, draws: PatientBootstrap, labels: Sequence[str], statistics: Sequence[Statistic]
) -> list[Measure]:
    mean = Measure(name, draws.estimate(metrics.mean_over(statistics)), by, "mean", source="phantoms")
    each = [
        Measure(name, draws.estimate(of), by, label, source="phantoms") for label, of in zip(labels, statistics, strict=True)
    ]
    return [mean, *each]
