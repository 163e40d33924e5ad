"""The gate: is this film of a kind the model has seen? A film outside gets "not assessed", not a number.

Far from every training film in the space of the tower's own features (mean and spread of each level, whitened on
training films: Mahalanobis, Lee 2018) is outside. What an outside film resembles is the nearest of a few kinds made
or collected at fitting time, and is only used for words. Fitted by `training/gate.py`; numpy only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from foundation.errors import CheckpointRefused

if TYPE_CHECKING:
    from foundation.backbone import ImageFeatures

GATE_FILE = "gate.safetensors"
FILM_MODALITIES = frozenset({"", "CR", "DX", "RG", "RF", "XA", "PX", "SC", "OT"})
MODALITY_WORDS = {
    "CT": "a CT slice",
    "MR": "an MR slice",
    "US": "an ultrasound image",
    "NM": "a nuclear medicine image",
    "PT": "a PET image",
    "MG": "a mammogram",
    "OP": "a photograph of the eye",
    "SM": "a microscope slide",
    "ES": "an endoscopic image",
    "XC": "a photograph",
}

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GateVerdict:
    """score is the distance over the limit: above 1 the film is outside. looks_like is "" where it is inside."""

    assessed: bool
    looks_like: str
    score: float


@dataclass(frozen=True, eq=False)
class Gate:
    """mean (G,), whiten (G, P), limit: the squared distance training allows; kinds (J, P) centroids and their words."""

    mean: Vector
    whiten: Vector
    limit: float
    kinds: Vector
    kind_words: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Gate | None:
        """The gate beside a checkpoint, or None where the checkpoint has none (then every film is assessed)."""
        from safetensors import safe_open

        path = folder / GATE_FILE
        if not path.is_file():
            return None
        with safe_open(str(path), framework="numpy") as held:
            words = (held.metadata() or {}).get("kind_words")
            if words is None or set(held.keys()) != {"mean", "whiten", "limit", "kinds"}:
                raise CheckpointRefused(f"{GATE_FILE} is not a gate: it must hold mean, whiten, limit, kinds and kind_words.")
            tensors = {name: held.get_tensor(name).astype(np.float32) for name in held.keys()}  # noqa: SIM118
        return cls(
            mean=tensors["mean"],
            whiten=tensors["whiten"],
            limit=float(tensors["limit"][0]),
            kinds=tensors["kinds"],
            kind_words=tuple(json.loads(words)),
        )

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        tensors = {
            "mean": self.mean.astype(np.float32),
            "whiten": self.whiten.astype(np.float16),
            "limit": np.array([self.limit], np.float32),
            "kinds": self.kinds.astype(np.float32),
        }
        # NOTE: safetensors writes an array's memory as it lies; of a transposed one that is another array.
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(tensors, folder / GATE_FILE, metadata={"kind_words": json.dumps(self.kind_words)})

    def assess(self, vector: Vector, modality: str = "") -> GateVerdict:
        """vector (G,) from `gate_vectors`; modality is the DICOM code where the file says one."""
        if modality.upper() not in FILM_MODALITIES:
            return GateVerdict(False, MODALITY_WORDS.get(modality.upper(), f"an image of modality {modality.upper()}"), np.inf)
        white = self.whitened(vector[None])[0]
        score = float(white @ white) / self.limit
        return GateVerdict(score <= 1.0, "" if score <= 1.0 else self._kind_of(white), score)

    def whitened(self, vectors: Vector) -> Vector:
        """(B, G) -> (B, P), unit variance on training films in every direction."""
        return np.asarray((vectors - self.mean) @ self.whiten, np.float32)

    def _kind_of(self, white: Vector) -> str:
        if not len(self.kinds):
            return "something other than a frontal chest film"
        direction = white / (np.linalg.norm(white) + 1e-9)
        centroids = self.kinds / (np.linalg.norm(self.kinds, axis=1, keepdims=True) + 1e-9)
        return self.kind_words[int(np.argmax(centroids @ direction))]


def gate_vectors(features: ImageFeatures) -> Vector:
    """(B, G): for each level the mean and the spread of every channel over the film, then the embedding."""
    import torch

    parts = []
    for level in features.levels:
        flat = level.float().flatten(2)
        parts += [flat.mean(2), flat.std(2)]
    parts.append(features.embedding.float())
    joined: Vector = torch.cat(parts, 1).detach().cpu().numpy().astype(np.float32)
    return joined
