"""Films on the shelf: what the decoder is given of each, in every view, blank and shuffled, computed once in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foundation.controls import blank, shuffled
from training.augment import AugmentStrength
from training.finetuning.chat.lessons import Shelf
from training.finetuning.chat.stated import FilmReader
from training.finetuning.trunk_cache import augmented_pixels
from training.manifests.manifest import Row
from training.measuring.scoring import Film


def shelve(
    rows: Sequence[Row],
    films: Sequence[Film],
    reader: FilmReader,
    views: int = 1,
    strength: AugmentStrength | None = None,
    seed: int = 0,
) -> dict[str, Shelf]:
    """Each row's film (S, S, 3) by the row's id: itself, `views` - 1 augmented ones, its blank and its shuffle."""
    seen = [reader.see_films(films)]
    for view in range(1, views):
        assert strength is not None
        pixels = [
            augmented_pixels(film[None], reader.backbone.contract, strength, seed + 7919 * view + 104_729 * place)
            for place, film in enumerate(films)
        ]
        seen.append(reader.see(torch.cat(pixels)))
    empty = reader.see_films([blank(film) for film in films])
    mixed = reader.see_films([shuffled(film) for film in films])
    shelves = zip(rows, zip(*seen, strict=True), empty, mixed, strict=True)
    return {row.id: Shelf(tuple(shown), nothing, jumbled) for row, shown, nothing, jumbled in shelves}


def shelve_alone(rows: Sequence[Row], films: Sequence[Film], reader: FilmReader) -> dict[str, Shelf]:
    """Each row's film (S, S, 3) as it is, without views and twins: for films that only join the lessons."""
    return {row.id: Shelf((seen,)) for row, seen in zip(rows, reader.see_films(films), strict=True)}
