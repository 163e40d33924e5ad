"""Films as the decoder gets them: patch tokens of phantoms and of training films, once, in float16 memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from foundation.errors import CheckpointRefused, ManifestError
from foundation.lexicon import FINDINGS
from training.pretraining.decoder.facts import FilmFacts, draw_facts
from training.pretraining.text.corpus import training_rows

if TYPE_CHECKING:
    from foundation.backbone import Backbone


@dataclass(frozen=True, eq=False)
class FilmBank:
    """Patch tokens (F, N, D) float16 and each film's true findings."""

    tokens: Tensor
    labels: tuple[tuple[str, ...], ...]

    def facts(self, index: int, rng: random.Random) -> FilmFacts:
        return draw_facts(rng, self.labels[index])

    def __len__(self) -> int:
        return len(self.tokens)


def phantom_bank(backbone: Backbone, count: int, first_seed: int) -> FilmBank:
    """Phantoms `first_seed` .. and what they show; devices, which the decoder does not speak of, are left out."""
    from foundation.phantom import make_phantom

    films, labels = [], []
    for seed in range(first_seed, first_seed + count):
        phantom = make_phantom(seed, backbone.contract.size)
        films.append(np.repeat(phantom.film[..., None], 3, axis=2))
        labels.append(tuple(one.name for one in phantom.findings if one.name in FINDINGS))
    return FilmBank(encode_films(backbone, films), tuple(labels))


def film_bank(backbone: Backbone, manifest: Path, count: int, seed: int) -> FilmBank:
    """Real training films whose findings are labelled, those with a finding first, in an order of the seed."""
    from foundation.preprocess import render
    from foundation.readers import read_film

    rows = [row for row in training_rows(manifest) if row["source"] == "nih_cxr14"]
    if not rows:
        raise ManifestError(f"{manifest.name} has no training row of nih_cxr14; train without a manifest.")
    random.Random(seed).shuffle(rows)
    rows.sort(key=lambda row: row["labels"] == ["normal"])
    split = min(len(rows), round(count * 0.8))
    chosen = rows[:split] + rows[len(rows) - (count - split) :] if count < len(rows) else rows
    films, labels = [], []
    for row in chosen:
        data = (manifest.parent / str(row["image"])).read_bytes()
        films.append(render(read_film(data), backbone.contract))
        labels.append(tuple(str(label) for label in cast(list[str], row["labels"]) if label in FINDINGS))
    return FilmBank(encode_films(backbone, films), tuple(labels))


@torch.inference_mode()
def encode_films(backbone: Backbone, films: Sequence[Any], batch: int = 32) -> Tensor:
    """Films (S, S, 3) uint8 -> patch tokens (F, N, D) float16."""
    from foundation.preprocess import normalise

    parts = []
    for start in range(0, len(films), batch):
        pixels = np.stack([normalise(film, backbone.contract) for film in films[start : start + batch]])
        parts.append(backbone.encode_image(torch.from_numpy(pixels).to(backbone.device)).tokens.half().cpu())
    tokens = torch.cat(parts)
    if not bool(torch.isfinite(tokens).all()):
        raise CheckpointRefused("The image tower's patch tokens overflow float16: it has not been trained soundly.")
    return tokens
