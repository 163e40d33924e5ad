"""Phantoms as labelled rows: synthetic films that join the training films of a classification adapter, never the others.

A phantom's truth is exact for the findings it can show. Of the other labels it is known to have none, but for those a
reader might have used for the same shadow (a consolidation may be called pneumonia): these are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from foundation.errors import InvalidRequest
from foundation.phantom import FINDINGS, make_phantom
from foundation.preprocess import InputContract
from training.manifests.manifest import Row
from training.processes import main_first
from training.whole_file import whole

FIRST_SEED = 30_000_000  # apart from those of pretraining and of every check
HELD_OUT_SEED = 40_000_000
SIZES = (48, 2048)  # that a phantom can be drawn at
SOURCE = "phantom"
ALSO_CALLED = {
    "infiltration": ("consolidation", "edema", "atelectasis"),
    "pneumonia": ("consolidation", "atelectasis"),
    "lung opacity": ("consolidation", "edema", "atelectasis", "mass", "nodule", "effusion"),
}
Films = npt.NDArray[np.uint8]


def phantom_films(
    count: int, first_seed: int, contract: InputContract, folder: Path
) -> tuple[Films, tuple[tuple[str, ...], ...]]:
    """`count` films (N, S, S, 1) uint8 at the model's size and the findings of each; kept in the cache folder."""
    target = folder / f"drawn-phantoms-{contract.size}-{first_seed}-{count}.npz"
    with main_first():
        if not target.is_file():
            drawn = min(max(contract.size, SIZES[0]), SIZES[1])
            made = [make_phantom(seed, drawn) for seed in range(first_seed, first_seed + count)]
            truth = np.stack([phantom.label_vector() for phantom in made])
            shown = np.stack([_fitted(phantom.film, contract.size) for phantom in made])
            with whole(target) as partial:
                np.savez_compressed(partial, films=shown, truth=truth)
    with np.load(target, allow_pickle=False) as held:
        findings = tuple(tuple(name for name, is_on in zip(FINDINGS, row, strict=True) if is_on) for row in held["truth"])
        return held["films"], findings


def _fitted(film: Films, size: int) -> Films:
    """(h, w) -> (size, size, 1), where the model's films are smaller or larger than a phantom can be drawn."""
    if film.shape[0] != size:
        film = np.asarray(Image.fromarray(film).resize((size, size), Image.Resampling.BILINEAR))
    return film[..., None]


def phantom_truth(findings: Sequence[Sequence[str]], labels: Sequence[str]) -> npt.NDArray[np.float32]:
    """(N, K): 1, 0, or NaN where a reader might have used the label. InvalidRequest where phantoms show none of them."""
    if not set(labels) & set(FINDINGS):
        raise InvalidRequest(
            f"data.phantoms: none of the labels {', '.join(labels)} can be drawn into a phantom; set it to 0.", param="phantoms"
        )
    truth = np.array([[label in shown for label in labels] for shown in findings], np.float32)
    for column, label in enumerate(labels):
        doubtful = set(ALSO_CALLED.get(label, ()))
        truth[[bool(doubtful & set(shown)) for shown in findings], column] = np.nan
    return truth


def phantom_rows(findings: Sequence[Sequence[str]], first_seed: int) -> tuple[Row, ...]:
    """Rows for the card and the sampler; each phantom is a patient of its own."""
    return tuple(
        Row(
            number=0,
            id=f"phantom-{seed}",
            image=Path(f"phantom-{seed}"),
            split="train",
            patient_id=f"phantom-{seed}",
            group=f"phantom-{seed}",
            labels=tuple(shown) or ("normal",),
            is_labelled=True,
            licence="generated",
            licence_class="permissive",
            extra={"source": SOURCE},
        )
        for seed, shown in enumerate(findings, start=first_seed)
    )
