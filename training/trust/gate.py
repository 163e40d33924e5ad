"""Fitting the gate: what films of training look like, what other pictures look like, and where the limits lie.

    looks      training films, once more altered, and phantoms  against  the kinds of `outside.py` and other modalities' rows
    distance   some of those films through the tower
    limits     so that `let_through` of validation films and phantoms pass each of the two

One command, about a minute of one core: python -m training.trust.fit_gate. A new tower needs its distance fitted anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from foundation.gate import Distance, Gate, Looks, Vector, gate_vectors, other_odds, sketch
from foundation.gate_look import LOOK_WIDTH, film_looks
from foundation.phantom import make_phantom
from foundation.preprocess import normalise
from training.augment import AugmentStrength, augment
from training.manifests.datasets import render_grey
from training.manifests.manifest import Row, load_manifest
from training.trust.outside import SLICE, Films, outside_films


@dataclass(frozen=True)
class GateRecipe:
    """per_source: training films used of each source at most, so that a large one does not stand for all.

    altered: how many altered views every source has at least, beside its films. through_tower: films (and as many
    tenths of phantoms) that the distance is fitted on. each: made pictures of each kind. directions: of the distance.
    let_through: the share of validation films that must pass.
    """

    per_source: int = 700
    altered: int = 450
    phantoms: int = 200
    each: int = 200
    through_tower: int = 700
    held_out: int = 400
    hidden: int = 64
    epochs: int = 25
    directions: int = 192
    let_through: float = 0.997
    seed: int = 0


MILD = AugmentStrength(
    rotate_degrees=6, zoom=0.12, shift=0.05, gamma=0.35, contrast=0.2, brightness=0.08, resample=0.3, noise=0.02, border=0.15,
    erase=0.0,
)  # fmt: skip
OTHER_MODALITIES = ("CT", "MR", "CT/MR")
FRAMED_SHARE = 0.3


def film_vectors(backbone: Backbone, films: Films, batch: int = 32) -> Vector:
    """(N, G) gate vectors of grey films."""
    parts = []
    for start in range(0, len(films), batch):
        chunk = films[start : start + batch]
        pixels = [normalise(np.repeat(film[..., None], 3, 2), backbone.contract) for film in chunk]
        with torch.inference_mode():
            parts.append(gate_vectors(backbone.encode_image(torch.from_numpy(np.stack(pixels)))))
    return np.concatenate(parts)


def fit_looks(films: Films, kinds: Mapping[str, Films], recipe: GateRecipe) -> Looks:
    """The classifier of looks: class 0 for `films` (N, S, S), then one class for each of `kinds`."""
    looks = torch.from_numpy(np.concatenate([film_looks(films), *(film_looks(made) for made in kinds.values())]))
    classes = torch.tensor([0] * len(films) + [1 + k for k, made in enumerate(kinds.values()) for _ in made])
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        hidden, out = nn.Linear(LOOK_WIDTH, recipe.hidden), nn.Linear(recipe.hidden, 1 + len(kinds))
        model = nn.Sequential(nn.Dropout(0.2), hidden, nn.ReLU(), nn.Dropout(0.3), out)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        steps = recipe.epochs * -(-len(looks) // 192)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(recipe.epochs):
            for chosen in torch.randperm(len(looks)).split(192):
                shown = looks[chosen] + 0.1 * torch.randn(len(chosen), LOOK_WIDTH)
                loss = F.cross_entropy(model(shown), classes[chosen], label_smoothing=0.01)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()

    def plain(tensor: torch.Tensor) -> Vector:
        return np.ascontiguousarray(tensor.detach().numpy(), np.float32)

    return Looks(plain(hidden.weight.T), plain(hidden.bias), plain(out.weight.T), plain(out.bias))


def fit_distance(inside: Vector, directions: int) -> Distance:
    """inside (N, G) -> the Mahalanobis distance in the sketch's directions of most variance, a floor under each."""
    centre, scale = inside.mean(0), inside.std(0) + 1e-3
    summed = sketch((inside - centre) / scale)
    mean = summed.mean(0)
    variance, basis = np.linalg.eigh(np.cov((summed - mean).T))
    variance, basis = variance[::-1][:directions], basis[:, ::-1][:, :directions]
    whiten = basis / np.sqrt(np.maximum(variance, variance[0] * 1e-6))
    return Distance(centre, scale, mean.astype(np.float32), whiten.astype(np.float32))


def fit_gate(
    films: Films, vectors: Vector, kinds: Mapping[str, Films], held_films: Films, held_vectors: Vector, recipe: GateRecipe
) -> Gate:
    """films for the looks and vectors (N, G) for the distance of what is inside; kinds: word -> films of what is not.

    held_films and held_vectors, of films in neither, set the two limits.
    """
    looks = fit_looks(films, kinds, recipe)
    distance = fit_distance(vectors, recipe.directions)
    odds, far = other_odds(looks.logits(film_looks(held_films))), distance.squared(held_vectors)
    odds_limit, distance_limit = (float(np.quantile(values, recipe.let_through)) for values in (odds, far))
    return Gate(looks, distance, odds_limit, distance_limit, tuple(kinds))


def fit_checkpoint_gate(
    folder: Path,
    manifest: Path,
    licence_classes: Sequence[str],
    recipe: GateRecipe | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, float]:
    """Fit the gate of the checkpoint in `folder`, write it there, and return what share of each kind it lets through."""
    recipe = recipe or GateRecipe()
    backbone = open_checkpoint(folder).backbone
    size = backbone.contract.size
    rows = [row for row in load_manifest(manifest).rows if row.licence_class in licence_classes]
    sources = [grey_films(paths, size) for paths in _by_source(rows, "train", recipe.per_source, recipe.seed)]
    phantoms = phantom_greys(recipe.phantoms, size, 0)
    views = [altered(_enough(films, recipe.altered), recipe.seed + place) for place, films in enumerate(sources)]
    inside = np.concatenate([*sources, phantoms, *views])
    log(f"gate: {len(inside)} films inside")
    kinds = _kinds(inside, rows, size, recipe)
    log(f"gate: {sum(map(len, kinds.values()))} pictures outside")
    held_paths = _by_source(rows, "val", recipe.held_out // 3, recipe.seed)
    held = np.concatenate([*(grey_films(paths, size) for paths in held_paths), phantom_greys(40, size, 5_000_000)])
    held = _some(held, recipe.held_out, recipe.seed)
    through = np.concatenate([_some(inside, recipe.through_tower, recipe.seed), phantoms[: recipe.through_tower // 10]])
    vectors, held_vectors = film_vectors(backbone, through), film_vectors(backbone, held)
    log(f"gate: {len(through) + len(held)} films through the tower")
    gate = fit_gate(inside, vectors, kinds, held, held_vectors, recipe)
    gate.save(folder)
    odds = {"validation films": held, **kinds}
    shares = {word: float(np.mean(other_odds(gate.looks.logits(film_looks(f))) <= gate.odds_limit)) for word, f in odds.items()}
    for word, share in shares.items():
        log(f"gate lets through {share:6.1%} of {word}, by their looks")
    return shares


def _kinds(inside: Films, rows: Sequence[Row], size: int, recipe: GateRecipe) -> dict[str, Films]:
    """What is made in code, and the manifest's slices."""
    kinds = outside_films(inside, recipe.seed, recipe.each)
    slices = [row.image for row in rows if row.split == "train" and modality_of(row) in OTHER_MODALITIES]
    if slices:
        kinds[SLICE] = np.concatenate([kinds[SLICE], grey_films(slices, size)])
    return kinds


def _by_source(rows: Sequence[Row], split: str, most: int, seed: int) -> list[list[Path]]:
    """Chest films of the split, at most so many a source."""
    sources: dict[str, list[Path]] = {}
    for row in rows:
        if row.split == split and modality_of(row) == "CXR":
            sources.setdefault(str(row.get("source") or "films"), []).append(row.image)
    random = np.random.default_rng(seed)
    return [[paths[k] for k in sorted(random.permutation(len(paths))[:most])] for paths in sources.values()]


def _some(films: Films, count: int, seed: int) -> Films:
    return films[np.sort(np.random.default_rng(seed).permutation(len(films))[:count])]


def _enough(films: Films, count: int) -> Films:
    """The films, over and over, until there are `count`."""
    return films[np.arange(count) % len(films)]


def modality_of(row: Row) -> str:
    return str(row.get("modality") or "CXR")


def altered(films: Films, seed: int) -> Films:
    """The films as another scanner or another photographer would have given them: `MILD`, some within a frame."""
    if not len(films):
        return films
    generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    parts = []
    for start in range(0, len(films), 128):
        grey = torch.from_numpy(np.ascontiguousarray(films[start : start + 128])).float().div(255).unsqueeze(1)
        grey = torch.stack([_framed(film, random) if random.random() < FRAMED_SHARE else film for film in grey])
        parts.append(augment(grey, films.shape[-1], MILD, generator).squeeze(1).mul(255).round().byte().numpy())
    return np.concatenate(parts)


def _framed(film: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """The film (1, S, S) within a black, white or grey surround, as a wide or narrow film squared, or a screen, shows it."""
    size = film.shape[-1]
    height, width = (int(size * random.uniform(low, 1.0)) for low in random.permutation([0.6, 0.9]))
    surround = torch.full_like(film, float(random.choice([0.0, 0.0, 1.0, random.random()])))
    top, left = (int(random.integers(0, size - length + 1)) for length in (height, width))
    small = F.interpolate(film[None], (height, width), mode="bilinear", antialias=True)[0]
    surround[:, top : top + height, left : left + width] = small
    return surround


def phantom_greys(count: int, size: int, first_seed: int) -> Films:
    return np.stack([make_phantom(seed, size).film for seed in range(first_seed, first_seed + count)])


def grey_films(paths: Sequence[Path], size: int) -> Films:
    """Films (N, S, S) by the one preprocess; see datasets.cache_films for a cached form."""
    return np.stack([render_grey(path, size) for path in paths])
