"""The gate: is this film of a kind the model has seen? A film outside gets "not assessed", not a number.

    its look (gate_look.py)   -> a small classifier: a chest film, or which other kind     odds over odds_limit: outside
    what the tower made of it -> distance from training films (Mahalanobis, Lee 2018)      over distance_limit: outside

The first knows the mistakes people make: turned, inverted, another part of the body, no film at all. The second asks
whether the tower's own features (mean and spread of each level) are like those of training; they are brought from G to 512
numbers by a signed count sketch (Charikar 2002), which keeps distances and needs no table. Fitted by `training/trust/gate.py`.
Numpy only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from foundation.errors import CheckpointRefused
from foundation.gate_look import LOOK_WIDTH, as_grey, film_looks, is_coloured

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
COLOURED = "a picture in colour"
OTHER = "something other than a frontal chest film"
SKETCH = 512
_HIGHEST_SCORE = 1e6

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GateVerdict:
    """score is how far beyond the limit: above 1 the film is outside. looks_like is "" where it is inside."""

    assessed: bool
    looks_like: str
    score: float


@dataclass(frozen=True, eq=False)
class Looks:
    """A classifier of looks with one hidden layer. hidden (LOOK_WIDTH, H), out (H, 1 + kinds): class 0 is a chest film."""

    hidden: Vector
    hidden_bias: Vector
    out: Vector
    out_bias: Vector

    def logits(self, looks: Vector) -> Vector:
        """(B, LOOK_WIDTH) -> (B, 1 + kinds)."""
        return np.asarray(np.maximum(looks @ self.hidden + self.hidden_bias, 0) @ self.out + self.out_bias, np.float32)


@dataclass(frozen=True, eq=False)
class Distance:
    """centre, scale (G,) of each number; mean (SKETCH,) and whiten (SKETCH, P) of their sketch on training films."""

    centre: Vector
    scale: Vector
    mean: Vector
    whiten: Vector

    def squared(self, vectors: Vector) -> Vector:
        """(B, G) -> (B,)."""
        white = (sketch((vectors - self.centre) / self.scale) - self.mean) @ self.whiten
        return np.asarray((white**2).sum(1), np.float32)


@dataclass(frozen=True, eq=False)
class Gate:
    """kind_words: what each class of `looks` but the first is called."""

    looks: Looks
    distance: Distance
    odds_limit: float
    distance_limit: float
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
            names = {f"{part}.{field.name}" for part, kind in _PARTS.items() for field in fields(kind)} | {"limits"}
            if words is None or set(held.keys()) != names:
                raise CheckpointRefused(
                    f"{GATE_FILE} is not a gate of this version. Fit it anew: python -m training.trust.fit_gate."
                )
            tensors = {name: held.get_tensor(name).astype(np.float32) for name in held.keys()}  # noqa: SIM118
        parts = {
            part: kind(**{field.name: tensors[f"{part}.{field.name}"] for field in fields(kind)})
            for part, kind in _PARTS.items()
        }
        odds_limit, distance_limit = map(float, tensors["limits"])
        looks, distance = parts["looks"], parts["distance"]
        assert isinstance(looks, Looks)
        assert isinstance(distance, Distance)
        gate = cls(looks, distance, odds_limit, distance_limit, tuple(json.loads(words)))
        if gate.looks.hidden.shape[0] != LOOK_WIDTH or gate.looks.out.shape[1] != 1 + len(gate.kind_words):
            raise CheckpointRefused(f"{GATE_FILE} does not fit this version. Fit it anew: python -m training.trust.fit_gate.")
        return gate

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        tensors = {"limits": np.array([self.odds_limit, self.distance_limit], np.float32)}
        for part, kind in _PARTS.items():
            for field in fields(kind):
                tensor = getattr(getattr(self, part), field.name)
                # NOTE: safetensors writes an array's memory as it lies; of a transposed one that is another array.
                tensors[f"{part}.{field.name}"] = np.ascontiguousarray(tensor, np.float16 if tensor.ndim == 2 else np.float32)
        save_file(tensors, folder / GATE_FILE, metadata={"kind_words": json.dumps(self.kind_words)})

    def assess(self, vector: Vector, pixels: npt.NDArray[np.uint8], modality: str = "") -> GateVerdict:
        """vector (G,) from `gate_vectors`; pixels (S, S, 3) or (S, S), as the model sees them; modality: the DICOM code."""
        if modality.upper() not in FILM_MODALITIES:
            return GateVerdict(False, MODALITY_WORDS.get(modality.upper(), f"an image of modality {modality.upper()}"), np.inf)
        if is_coloured(pixels):
            return GateVerdict(False, COLOURED, np.inf)
        logits = self.looks.logits(film_looks(as_grey(pixels)[None]))[0]
        over = min(float(other_odds(logits[None])[0]) - self.odds_limit, np.log(_HIGHEST_SCORE))
        far = float(self.distance.squared(vector[None])[0]) / self.distance_limit
        score = max(float(np.exp(over)), far)
        if score <= 1.0:
            return GateVerdict(True, "", score)
        return GateVerdict(False, self.kind_words[int(logits[1:].argmax())] if over > 0 else OTHER, score)


_PARTS: dict[str, type[Looks] | type[Distance]] = {"looks": Looks, "distance": Distance}


def other_odds(logits: Vector) -> Vector:
    """(B, 1 + kinds) -> (B,): the log-odds of being any other kind than a chest film."""
    top = logits[:, 1:].max(1)
    return np.asarray(top + np.log(np.exp(logits[:, 1:] - top[:, None]).sum(1)) - logits[:, 0], np.float32)


def sketch(vectors: Vector) -> Vector:
    """(B, G) -> (B, SKETCH): each number added to, or taken from, one of SKETCH sums, by a fixed hash of its place."""
    place = np.arange(vectors.shape[1], dtype=np.uint64)
    mixed = (place * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)  # Fibonacci hashing; the product wraps at 64 bits
    signs = np.where(mixed & np.uint64(1), 1.0, -1.0).astype(np.float32)
    sums = np.zeros((SKETCH, len(vectors)), np.float32)
    np.add.at(sums, ((mixed >> np.uint64(1)) % np.uint64(SKETCH)).astype(np.intp), (vectors * signs).T.astype(np.float32))
    return np.ascontiguousarray(sums.T)


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
