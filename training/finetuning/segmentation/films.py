"""Films of the segmentation task: the rows that have masks, and each split's pixels and masks as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foundation.errors import InvalidRequest, ManifestError
from foundation.readers import read_film
from training.finetuning.segmentation.masks import MaskedFilms, check_masks, has_masks, load_masked, load_volumes
from training.finetuning.segmentation.recipe import Job, SegmentationRecipe
from training.finetuning.trunk_cache import film_cache
from training.manifests.manifest import Manifest


def segmentation_rows(rows: Manifest, recipe: SegmentationRecipe) -> Manifest:
    """The rows with a mask that the recipe knows; missing files are an error before anything is trained."""
    kept = rows.select(lambda row: has_masks(row, recipe.data.masks))
    check_masks(kept.rows, recipe.data.masks)
    return kept


def load_films(job: Job, split: str) -> MaskedFilms:
    """The films of a split; volumes as their slices."""
    rows, contract = job.rows.of(split), job.backbone.contract
    if read_film(rows[0].image.read_bytes()).is_volume:
        return load_volumes(rows, job.recipe.data.masks, contract, job.recipe.data.context)
    pixels = film_cache([row.image for row in rows], contract, job.cache, is_quiet=job.is_quiet)
    return load_masked(rows, job.recipe.data.masks, pixels, contract)


def check_classes(films: Mapping[str, MaskedFilms], labels: Sequence[str]) -> None:
    """Raises ManifestError where `train` or `val` is empty, InvalidRequest where one of them lacks a class altogether."""
    for split in ("train", "val"):
        if split not in films:
            raise ManifestError(f"No row of split {split!r} has a mask; set `split` on some patients.", param="split")
        empty = [repr(label) for k, label in enumerate(labels) if not (films[split].masks[:, k] >= 128).any()]
        if empty:
            raise InvalidRequest(f"No {split} mask holds {', '.join(empty)}; correct data.masks or drop it.", param="masks")
