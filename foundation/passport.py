"""Passport: the record of what a checkpoint is, and the proof that it still is that.

Every opening describes what it found. Where a passport.json lies beside the weights, the description must agree with
it: the same files with the same bytes, the same number of tensors, and the same numbers out of the towers for a fixed
film and a fixed sentence (the smoke vector), which also catches a library that computes differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foundation.backbone import Backbone
from foundation.errors import CheckpointRefused
from foundation.folder_check import file_digest, read_json, visible_files
from foundation.preprocess import InputContract, normalise

PASSPORT_FILE = "passport.json"
SMOKE_SENTENCE = "there is a large left pleural effusion."
SMOKE_NUMBERS = 8
SMOKE_TOLERANCE = 1e-3  # float32 on another processor differs by less than 1e-5


@dataclass(frozen=True)
class SmokeVector:
    """The first numbers of the embeddings (float32, L2-normalised) of `smoke_film` and SMOKE_SENTENCE."""

    image: tuple[float, ...]
    text: tuple[float, ...]
    tolerance: float = SMOKE_TOLERANCE

    def agrees_with(self, other: SmokeVector) -> bool:
        """Whether all numbers of both lie within this one's tolerance."""
        here, there = (*self.image, *self.text), (*other.image, *other.text)
        return len(here) == len(there) and bool(np.allclose(here, there, rtol=0.0, atol=self.tolerance))


@dataclass(frozen=True)
class Passport:
    """layout: which kinds of towers; files: name -> SHA-256 of everything in the folder but the passport itself."""

    layout: str
    licence: str
    fingerprint: str
    files: dict[str, str]
    tensors_bound: int
    tensors_expected: int
    preprocessing: InputContract
    smoke: SmokeVector

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, record: Any) -> Passport:
        """From parsed JSON. Raises CheckpointRefused where a field is unknown, missing or of the wrong kind."""
        names = {field.name for field in fields(cls)}
        if not isinstance(record, dict) or set(record) != names:
            odd = sorted(names ^ set(record)) if isinstance(record, dict) else ["(not an object)"]
            raise CheckpointRefused(f"`{PASSPORT_FILE}` has missing or unknown fields: {', '.join(odd)}. Write it anew.")
        try:
            stated = record["smoke"]
            image, text = (tuple(float(number) for number in stated[name]) for name in ("image", "text"))
            smoke = SmokeVector(image, text, float(stated["tolerance"]))
            contract = record["preprocessing"]
            contract = InputContract(**{**contract, "mean": tuple(contract["mean"]), "std": tuple(contract["std"])})
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointRefused(f"`{PASSPORT_FILE}` cannot be read. Write it anew.", param=PASSPORT_FILE) from error
        return cls(**{**record, "smoke": smoke, "preprocessing": contract})


def describe(folder: Path, config: Mapping[str, Any], backbone: Backbone, *, tensors_bound: int) -> Passport:
    """What is in front of us. Runs the towers once, on a film and a sentence."""
    return Passport(
        layout=layout_name(config),
        licence=_stated_licence(folder),
        fingerprint=backbone.fingerprint,
        files={
            path.relative_to(folder).as_posix(): file_digest(path)
            for path in visible_files(folder)
            if path.name != PASSPORT_FILE
        },
        tensors_bound=tensors_bound,
        tensors_expected=tensors_bound,  # binding refuses anything else
        preprocessing=backbone.contract,
        smoke=smoke_vector(backbone),
    )


def verify(folder: Path, found: Passport) -> Passport:
    """Hold `found` against the folder's passport.json, if it has one; returns the passport, its licence filled in."""
    path = folder / PASSPORT_FILE
    if not path.is_file():
        return found
    stated = Passport.from_json(read_json(path))
    for name in sorted(set(stated.files) ^ set(found.files)):
        state = "is missing" if name in stated.files else "is not in its passport"
        raise CheckpointRefused(f"The checkpoint's file `{name}` {state}. Restore the folder as published.", param=name)
    for name, digest in stated.files.items():
        if found.files[name] != digest:
            raise CheckpointRefused(f"The checkpoint's file `{name}` was changed since its passport.", param=name)
    if not stated.smoke.agrees_with(found.smoke):
        raise CheckpointRefused(
            "The checkpoint no longer gives the numbers of its passport for the fixed film and sentence. "
            "Install the library versions of requirements.lock.",
            param="smoke",
        )
    found = replace(found, licence=stated.licence)
    for name in ("layout", "fingerprint", "tensors_bound", "tensors_expected", "preprocessing"):
        if getattr(stated, name) != getattr(found, name):
            raise CheckpointRefused(f"The checkpoint's `{name}` differs from its passport.", param=name)
    return found


def smoke_vector(backbone: Backbone) -> SmokeVector:
    """The embeddings' first numbers for the fixed film and sentence. Raises CheckpointRefused if a tower cannot run."""
    film = normalise(smoke_film(backbone.contract.size), backbone.contract)
    try:
        with torch.inference_mode():
            image = backbone.encode_image(torch.from_numpy(film)[None]).embedding[0]
            text = backbone.encode_text([SMOKE_SENTENCE])[0]
    except (RuntimeError, AssertionError, IndexError) as error:
        raise CheckpointRefused(
            "The checkpoint's towers do not run on a film of its own size and a sentence. "
            "Check image_size, vocab_size and context_length in its config.",
            param="model_cfg",
        ) from error
    return SmokeVector(_first(image), _first(text))


def smoke_film(size: int) -> npt.NDArray[np.uint8]:
    """A fixed drawing, (size, size, 3): a ramp from left to right with two bright discs."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    film = 40 + 120 * columns
    for row, column, radius in ((0.4, 0.3, 0.2), (0.65, 0.7, 0.15)):
        film = np.where((rows - row) ** 2 + (columns - column) ** 2 < radius**2, film + 60, film)
    return np.repeat(film.astype(np.uint8)[..., None], 3, axis=2)


def layout_name(config: Mapping[str, Any]) -> str:
    """A short name of the two towers: "visformer_tiny + open_clip text 4x256"."""
    vision, text = config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    image = vision.get("timm_model_name") or (
        f"open_clip ViT {vision.get('layers', 12)}x{vision.get('width', 768)}/{vision.get('patch_size', 16)}"
    )
    words = text.get("hf_model_name") or f"open_clip text {text.get('layers', 12)}x{text.get('width', 512)}"
    return f"{image} + {words}"


def _first(embedding: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(float(number), 6) for number in embedding[:SMOKE_NUMBERS])


def _stated_licence(folder: Path) -> str:
    """The `license:` line of the model card's front matter; "unknown" where there is none."""
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
            if line.startswith("license:"):
                return line.removeprefix("license:").strip() or "unknown"
    return "unknown"
