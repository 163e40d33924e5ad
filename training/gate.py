"""Fitting the gate: what the tower's features look like on films it was trained for, and on what it was not.

Inside: training films of the manifest. The limit is set on validation films, which must be let through. Outside kinds
(only used to word a refusal) are made in code from inside films (turned, inverted), from noise and drawn pages, and
taken from manifest rows of another modality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter

from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from foundation.gate import Gate, Vector, gate_vectors
from foundation.phantom import make_phantom
from foundation.preprocess import normalise
from training.augment import AugmentStrength, augment
from training.datasets import render_grey
from training.manifest import Row, load_manifest

Films = npt.NDArray[np.uint8]  # (N, S, S) grey


def film_vectors(backbone: Backbone, films: Films, batch: int = 32) -> Vector:
    """(N, G) gate vectors of grey films."""
    parts = []
    for start in range(0, len(films), batch):
        chunk = films[start : start + batch]
        pixels = [normalise(np.repeat(film[..., None], 3, 2), backbone.contract) for film in chunk]
        with torch.inference_mode():
            parts.append(gate_vectors(backbone.encode_image(torch.from_numpy(np.stack(pixels)))))
    return np.concatenate(parts)


def fit_gate(
    inside: Vector, held_out: Vector, kinds: Mapping[str, Vector], *, let_through: float = 0.985, directions: int = 160
) -> Gate:
    """inside (N, G) training films, held_out (M, G) validation films; kinds word -> (J, G) outside films.

    Directions of least variance on training films are what outside films break, so all are kept with a floor on
    their variance; the limit lets `let_through` of the held-out films in.
    """
    mean = inside.mean(0)
    centred = inside - mean
    _, singular, basis = np.linalg.svd(centred, full_matrices=False)
    kept = min(directions, len(singular))
    spread = singular[:kept] / np.sqrt(len(inside) - 1)
    whiten = (basis[:kept] / np.maximum(spread, spread[0] * 1e-3)[:, None]).T.astype(np.float32)
    gate = Gate(mean, whiten, 1.0, np.zeros((0, kept), np.float32), ())
    distance = (gate.whitened(held_out) ** 2).sum(1)
    words = tuple(kinds)
    centroids = np.stack([_direction(gate.whitened(kinds[word])) for word in words])
    return Gate(mean, whiten, float(np.quantile(distance, let_through)), centroids, words)


def _direction(white: Vector) -> Vector:
    unit = white / (np.linalg.norm(white, axis=1, keepdims=True) + 1e-9)
    return np.asarray(unit.mean(0), np.float32)


def outside_films(inside: Films, seed: int = 0) -> dict[str, Films]:
    """word -> films (J, S, S) made in code: what a person may upload by mistake."""
    random = np.random.default_rng(seed)
    size = inside.shape[-1]
    chosen = inside[random.choice(len(inside), min(60, len(inside)), replace=False)]
    return {
        "a chest film turned on its side or upside down": np.stack([np.rot90(f, int(random.integers(1, 4))) for f in chosen]),
        "an inverted film": 255 - chosen,
        "noise": np.stack(list(_noise(60, size, random))),
        "a page of text": np.stack(list(_pages(60, size, random))),
        "a drawing or a photograph": np.stack(list(_scenes(120, size, random))),
        "an empty picture": np.stack([np.full((size, size), int(g), np.uint8) for g in random.integers(0, 256, 20)]),
    }


def _noise(count: int, size: int, random: np.random.Generator) -> Iterator[Films]:
    for index in range(count):
        cells = int(random.integers(4, size))
        grid = random.random((cells, cells)) if index % 2 else random.standard_normal((cells, cells)) * 0.2 + 0.5
        picture = Image.fromarray((np.clip(grid, 0, 1) * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        yield np.asarray(picture)


def _pages(count: int, size: int, random: np.random.Generator) -> Iterator[Films]:
    letters = list("abcdefghijklmnopqrstuvwxyz     ABCDE0123456789.,")
    for index in range(count):
        page = Image.new("L", (size, size), 250 if index % 3 else 10)
        draw = ImageDraw.Draw(page)
        step = int(random.integers(9, 16))
        for top in range(int(random.integers(2, 30)), size, step):
            text = "".join(random.choice(letters, int(random.integers(8, size // 5))))
            draw.text((int(random.integers(2, 20)), top), text, fill=20 if index % 3 else 230)
        yield np.asarray(page)


def _scenes(count: int, size: int, random: np.random.Generator) -> Iterator[Films]:
    for _ in range(count):
        sky, ground = random.integers(0, 256, 2)
        ramp = np.linspace(sky, ground, size)[:, None] * np.ones((1, size))
        picture = Image.fromarray(np.clip(ramp + random.standard_normal((size, size)) * 6, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for _ in range(int(random.integers(3, 14))):
            x, y, w, h = (int(v) for v in random.integers(-20, size, 4))
            box = (x, y, x + abs(w) // 2 + 8, y + abs(h) // 2 + 8)
            fill = int(random.integers(0, 256))
            draw.ellipse(box, fill=fill) if random.random() < 0.5 else draw.rectangle(box, fill=fill)
        yield np.asarray(picture.filter(ImageFilter.GaussianBlur(float(random.random() * 2))))


def rates(gate: Gate, vectors: Mapping[str, Vector]) -> dict[str, float]:
    """word -> share of the films let through."""
    return {word: float(np.mean([gate.assess(v).assessed for v in held])) for word, held in vectors.items()}


@dataclass(frozen=True)
class GateRecipe:
    """inside: training films used (and as many phantoms as `phantoms`); altered: how many of them once more as another
    scanner would give them; let_through: the share of validation films that must pass."""

    inside: int = 6000
    altered: int = 2000
    phantoms: int = 600
    let_through: float = 0.985
    directions: int = 160
    seed: int = 0


MILD = AugmentStrength(
    rotate_degrees=6, zoom=0.12, shift=0.05, gamma=0.35, contrast=0.2, brightness=0.08, resample=0.3, noise=0.02, border=0.15,
    erase=0.0,
)  # fmt: skip
OTHER_MODALITIES = {"CT": "a CT slice", "MR": "an MR slice"}


def fit_checkpoint_gate(
    folder: Path, manifest: Path, licence_classes: Sequence[str], recipe: GateRecipe, log: Callable[[str], None] = print
) -> dict[str, float]:
    """Fit the gate of the checkpoint in `folder`, write it there, and return what share of each kind it lets through."""
    backbone = open_checkpoint(folder).backbone
    rows = [row for row in load_manifest(manifest).rows if row.licence_class in licence_classes]
    of = {
        split: _sample([row for row in rows if row.split == split and modality_of(row) == "CXR"], recipe.inside, recipe.seed)
        for split in ("train", "val")
    }
    inside = grey_films([row.image for row in of["train"]], backbone.contract.size)
    phantoms = phantom_greys(recipe.phantoms, backbone.contract.size, 0)
    vectors = film_vectors(backbone, np.concatenate([inside, phantoms, altered(inside[: recipe.altered], recipe.seed)]))
    held = film_vectors(
        backbone,
        np.concatenate(
            [
                grey_films([row.image for row in of["val"]], backbone.contract.size),
                phantom_greys(150, backbone.contract.size, 5_000_000),
            ]
        ),
    )
    kinds = {word: film_vectors(backbone, films) for word, films in outside_films(inside, recipe.seed).items()}
    for code, word in OTHER_MODALITIES.items():
        other = [row.image for row in rows if row.split == "train" and modality_of(row) == code]
        if other:
            kinds[word] = film_vectors(backbone, grey_films(other, backbone.contract.size))
    gate = fit_gate(vectors, held, kinds, let_through=recipe.let_through, directions=recipe.directions)
    gate.save(folder)
    shares = rates(gate, {"validation films": held, **kinds})
    for word, share in shares.items():
        log(f"gate lets through {share:6.1%} of {word}")
    return shares


def modality_of(row: Row) -> str:
    return str(row.get("modality") or "CXR")


def _sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    if len(rows) <= count:
        return list(rows)
    chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    return [rows[place] for place in sorted(chosen)]


def altered(films: Films, seed: int) -> Films:
    """The films as another scanner or another photographer would have given them; see `MILD`."""
    if not len(films):
        return films
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(films), 128):
        grey = torch.from_numpy(np.ascontiguousarray(films[start : start + 128])).float().div(255).unsqueeze(1)
        parts.append(augment(grey, films.shape[-1], MILD, generator).squeeze(1).mul(255).round().byte().numpy())
    return np.concatenate(parts)


def phantom_greys(count: int, size: int, first_seed: int) -> Films:
    return np.stack([make_phantom(seed, size).film for seed in range(first_seed, first_seed + count)])


def grey_films(paths: Sequence[Path], size: int) -> Films:
    """Films (N, S, S) by the one preprocess; see datasets.cache_films for a cached form."""
    return np.stack([render_grey(path, size) for path in paths])
