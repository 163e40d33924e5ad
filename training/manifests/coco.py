"""COCO's annotations as a manifest: one row an image, its categories as labels, its shapes as masks.

    {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}],
     "annotations": [{"image_id", "category_id", "segmentation": polygons or run lengths, "bbox"}]}

Further fields of an image (`split`, `patient_id`, ...) mean what they mean in a manifest. An image without an annotation of a
category is known not to hold it. A recipe names the masks by `field = "coco"`, classes by their category.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from foundation.errors import ManifestError

FIELD = "coco"
Mask = npt.NDArray[np.bool_]


class Notes(Protocol):
    def add(self, number: int, sentence: str) -> None: ...


def read_coco(path: Path, problems: Notes) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place of the image, counted from 1; a manifest row's fields). Raises ManifestError where it is no COCO file."""
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path.name} is not valid JSON at line {error.lineno}: write COCO's annotations") from None
    if not isinstance(held, dict) or not all(
        isinstance(held.get(name), list) for name in ("images", "annotations", "categories")
    ):
        raise ManifestError(f"{path.name} is not COCO's format: {{images: [...], annotations: [...], categories: [...]}}")
    names = {one.get("id"): str(one.get("name")) for one in held["categories"]}
    shapes: dict[Any, list[dict[str, Any]]] = {}
    numbers = {image.get("id"): number for number, image in enumerate(held["images"], start=1)}
    for place, one in enumerate(held["annotations"], start=1):
        if one.get("image_id") not in numbers:
            problems.add(0, f"annotation {place} is of image {one.get('image_id')!r}, which is not listed: list it or cut it")
        elif one.get("category_id") not in names:
            number = numbers[one["image_id"]]
            problems.add(
                number, f"annotation {place} has the unknown category {one.get('category_id')!r}: add it to categories"
            )
        else:
            shapes.setdefault(one["image_id"], []).append({**one, "category": names[one["category_id"]]})
    for number, image in enumerate(held["images"], start=1):
        own = shapes.get(image.get("id"), [])
        labels = sorted({shape["category"] for shape in own})
        kept = {name: value for name, value in image.items() if name not in ("file_name", "id")}
        yield number, {"image": image.get("file_name"), "id": str(image.get("id")), "labels": labels, **kept, FIELD: own}


def class_mask(
    shapes: Sequence[Mapping[str, Any]], names: Sequence[str] | Sequence[int], size: tuple[int, int], row: int
) -> Mask:
    """(H, W): where any shape of these categories (by name or id) lies. ManifestError names the row and what is wrong."""
    height, width = size
    mask = np.zeros(size, bool)
    for shape in shapes:
        if shape["category"] in names or shape["category_id"] in names:
            mask |= _drawn(shape.get("segmentation"), height, width, row)
    return mask


def _drawn(segmentation: Any, height: int, width: int, row: int) -> Mask:
    from adapters.tasks.rle import from_rle
    from foundation.errors import InvalidRequest

    if isinstance(segmentation, Mapping):
        try:
            mask = from_rle(dict(segmentation))
        except InvalidRequest as error:
            raise ManifestError(f"row {row}: {error.message}") from None
        if mask.shape != (height, width):
            raise ManifestError(
                f"row {row}: a mask of {mask.shape[0]} x {mask.shape[1]} pixels lies on a film of {height} x {width}: "
                "store it at the film's size"
            )
        return mask
    if not isinstance(segmentation, list) or not all(isinstance(ring, list) and len(ring) >= 6 for ring in segmentation):
        raise ManifestError(f"row {row}: a segmentation must be polygons [[x, y, x, y, x, y, ...]] or run lengths")
    drawn = Image.new("1", (width, height))
    for ring in segmentation:
        ImageDraw.Draw(drawn).polygon(list(zip(ring[::2], ring[1::2], strict=False)), fill=1)
    return np.asarray(drawn, bool)
