"""Films with masks, as arrays: which manifest field holds which class, read and checked row by row.

    MaskRecipe   field "mask_multi", class "heart" = values 3         one file may hold several classes
    MaskedFilms  pixels (N, S, S, C), masks (N, K, S, S), known (N, K)

A class that a row's masks do not speak of is unknown there, which is not the same as absent: it is neither learnt from
nor scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adapters.tasks.volume import render_slice, volume_window
from foundation.errors import FilmError, InvalidRequest, ManifestError
from foundation.image import MedicalImage
from foundation.preprocess import InputContract, fit_mask
from foundation.readers import read_film
from training.finetuning.job import NON_COMMERCIAL
from training.manifests.coco import FIELD as COCO_FIELD
from training.manifests.coco import class_mask
from training.manifests.manifest import Row, parse_where

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MaskRecipe:
    """Where masks are: the manifest's `field` holds a picture's path in rows that match `where`.

    classes: class name -> the picture's values that belong to it; an empty list means any value above zero. With the field
    "coco" they are categories of COCO's annotations, by id; an empty list means the category of that name.
    sides: each class is two, "right NAME" and "left NAME" of the patient, told apart by where their parts lie.
    """

    field: str = "mask"
    where: tuple[str, ...] = ()
    classes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    sides: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{side}{name}" for name in self.classes for side in (("right ", "left ") if self.sides else ("",)))

    def __post_init__(self) -> None:
        if not self.classes:
            raise InvalidRequest(f"data.masks: name the classes that {self.field!r} holds.", param="masks")

    def holds(self, row: Row) -> bool:
        wanted = parse_where(self.where or None)
        has_some = row.get(self.field) is not None if self.field == COCO_FIELD else bool(row.get(self.field))
        return has_some and all(set(row.words(name)) & set(values) for name, values in wanted.items())


@dataclass(frozen=True, eq=False)
class MaskedFilms:
    """The films of one split at the model's size. masks: 0 to 255, the share of each pixel that is covered."""

    rows: tuple[Row, ...]
    pixels: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8]
    known: Mask

    @property
    def patients(self) -> list[str]:
        return [row.patient_id for row in self.rows]


def class_names(recipes: Sequence[MaskRecipe]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for recipe in recipes for name in recipe.names))


def has_masks(row: Row, recipes: Sequence[MaskRecipe]) -> bool:
    return any(recipe.holds(row) for recipe in recipes)


def mask_licence(row: Row) -> str:
    """The row's licence class, or non-commercial where its masks are."""
    of_masks = str(row.get("mask_licence_class") or "")
    return NON_COMMERCIAL if NON_COMMERCIAL in (row.licence_class, of_masks) else row.licence_class


def read_masked(row: Row, recipes: Sequence[MaskRecipe]) -> tuple[MedicalImage, dict[str, Mask]]:
    """The row's film and its known masks, (H, W), or (Z, H, W) of a volume.

    Raises ManifestError where a mask is missing or of another size.
    """
    film = read_film(row.image.read_bytes())
    size = film.pixels.shape[0 if film.is_volume else 1 : 3]
    masks: dict[str, Mask] = {}
    for recipe in recipes:
        if not recipe.holds(row):
            continue
        if recipe.field == COCO_FIELD:
            for name, belonging in recipe.classes.items():
                wanted: Sequence[str] | Sequence[int] = belonging or [name]
                masks.setdefault(name, class_mask(row.get(COCO_FIELD), wanted, (size[-2], size[-1]), row.number))
            continue
        values = _values(row, recipe.field, film.is_volume)
        if values.shape != size:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (values.shape, size))
            raise ManifestError(
                f"row {row.number}: the mask in {recipe.field!r} has {ours} pixels, the film {theirs}: "
                "store it at the film's size"
            )
        for name, belonging in recipe.classes.items():
            held = np.isin(values, list(belonging)) if len(belonging) else values > 0
            parts = dict(zip(("right ", "left "), split_sides(held), strict=True)) if recipe.sides else {"": held}
            for side, part in parts.items():
                masks.setdefault(f"{side}{name}", part)
    return film, masks


def with_unions(masks: Mapping[str, Mask], unions: Mapping[str, Sequence[str]]) -> dict[str, Mask]:
    """The masks, and those of every union all of whose classes are among them."""
    known = {name: parts for name, parts in unions.items() if all(part in masks for part in parts)}
    return {**masks, **{name: np.any([masks[part] for part in parts], axis=0) for name, parts in known.items()}}


def split_sides(mask: Mask) -> tuple[Mask, Mask]:
    """The patient's right and left part of a paired organ (H, W), seen from the front: right is on the viewer's left.

    Connected parts are told apart by their middles, on either side of the midline between the two largest.
    """
    from scipy.ndimage import center_of_mass, label

    parts, count = label(mask)
    if not count:
        return mask, mask.copy()
    sizes = np.bincount(parts.ravel())[1:]
    middles = np.array([column for _, column in center_of_mass(mask, parts, range(1, count + 1))])
    largest = np.argsort(-sizes)[:2]
    midline = float(middles[largest].mean()) if len(largest) == 2 else (mask.shape[1] - 1) / 2
    right = np.isin(parts, 1 + np.flatnonzero(middles < midline))
    return np.asarray(right), np.asarray(mask & ~right)


def check_masks(rows: Sequence[Row], recipes: Sequence[MaskRecipe]) -> None:
    """Every mask file is there, before anything is trained."""
    missing = [
        f"row {row.number}: {recipe.field} {str(row.get(recipe.field))!r} is not a file beside the manifest"
        for row in rows
        for recipe in recipes
        if recipe.field != COCO_FIELD and recipe.holds(row) and not _path(row, recipe.field).is_file()
    ]
    if missing:
        raise ManifestError("; ".join(missing[:8]) + (f"; and {len(missing) - 8} more" if len(missing) > 8 else ""))


def load_masked(
    rows: Sequence[Row], recipes: Sequence[MaskRecipe], pixels: npt.NDArray[np.uint8], contract: InputContract
) -> MaskedFilms:
    """pixels: the rows' films as `film_cache` gives them."""
    names = class_names(recipes)
    masks = np.zeros((len(rows), len(names), contract.size, contract.size), np.uint8)
    known = np.zeros((len(rows), len(names)), bool)
    for place, (_, held) in enumerate(_read_all(rows, recipes)):
        for name, mask in held.items():
            masks[place, names.index(name)] = fit_mask(mask, contract)
            known[place, names.index(name)] = True
    return MaskedFilms(tuple(rows), pixels, masks, known)


def load_volumes(rows: Sequence[Row], recipes: Sequence[MaskRecipe], contract: InputContract, context: int) -> MaskedFilms:
    """Every slice of every volume as a film of its own, shown with its neighbours; a volume's row stands once a slice."""
    names = class_names(recipes)
    pixels, masks, known, owners = [], [], [], []
    for row, (image, held) in zip(rows, _read_all(rows, recipes), strict=True):
        window = volume_window(image)
        for place in range(image.slices):
            pixels.append(render_slice(image, contract, place, window, context))
            one = {name: fit_mask(mask[place] if image.is_volume else mask, contract) for name, mask in held.items()}
            blank = np.zeros((contract.size, contract.size), np.uint8)
            masks.append(np.stack([one.get(name, blank) for name in names]))
            known.append([name in one for name in names])
            owners.append(row)
    return MaskedFilms(tuple(owners), np.stack(pixels), np.stack(masks), np.array(known))


def _read_all(rows: Sequence[Row], recipes: Sequence[MaskRecipe]) -> Iterator[tuple[MedicalImage, dict[str, Mask]]]:
    for row in rows:
        yield read_masked(row, recipes)


def _values(row: Row, name: str, of_volume: bool) -> npt.NDArray[np.int64]:
    try:
        picture = read_film(_path(row, name).read_bytes())
    except FilmError as error:
        raise ManifestError(f"row {row.number}: the mask in {name!r} cannot be read: {error.message}") from error
    if picture.is_color or (picture.is_volume and not of_volume):
        raise ManifestError(f"row {row.number}: the mask in {name!r} must be one grey picture whose values are classes")
    values = picture.pixels.astype(np.int64)
    return np.asarray(values if of_volume else values[0])


def _path(row: Row, name: str) -> Path:
    """`mask` was resolved by the manifest; other fields are relative to it, as the image is."""
    value = row.get(name)
    return value if isinstance(value, Path) else row.folder / str(value)
