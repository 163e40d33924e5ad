"""Pictures of kinds that the gate was never shown: other people's test pictures, and films put together wrongly.

photographs              scikit-image's own, whole and in pieces
CT and MR, DICOM files   pydicom's own test files, without what their headers say
MR volumes               nibabel's own test file, cut along each axis
patterns                 checkerboards and waves
films, wrongly           torn into squares, one above another, three in a row, four on a sheet, lying at an angle
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from foundation.errors import FilmError
from foundation.preprocess import InputContract, render
from foundation.readers import read_film
from training.trust.outside import Films

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cell", "chelsea", "clock", "coffee", "coins", "grass", "gravel", "horse",
    "hubble_deep_field", "immunohistochemistry", "microaneurysms", "moon", "page", "retina", "rocket", "text",
)  # fmt: skip
PIECES = 3


def unseen_kinds(size: int, films: Films, seed: int) -> Iterator[tuple[str, Films]]:
    """(kind, pictures (N, S, S)); films: real ones, for the kinds that are made of them."""
    random = np.random.default_rng(seed)
    yield "photographs (scikit-image)", photographs(size, random)
    yield "CT and MR files (pydicom)", dicom_slices(size)
    yield "MR volumes (nibabel)", volume_slices(size)
    yield "patterns", _patterns(size, random)
    if len(films) > 2:
        yield "films torn into squares", np.stack([_torn(film, random) for film in films[:60]])
        yield "two films, one above the other", np.stack([beside(a.T, b.T).T for a, b in twos(films)])
        yield "three films in a row", np.stack([_row(films[k : k + 3]) for k in range(0, min(60, len(films) - 2))])
        yield "four films on a sheet", np.stack([beside(beside(a, b).T, beside(b, a).T).T for a, b in twos(films)])
        yield "films at 45 degrees", np.stack([_at_angle(film, index) for index, film in enumerate(films[:60])])


def photographs(size: int, random: np.random.Generator) -> Films:
    """Each whole, and pieces of it from four tenths of its shorter side on."""
    import skimage.data

    shown = []
    for name in PHOTOGRAPHS:
        picture = np.asarray(getattr(skimage.data, name)())
        eight_bit = picture if picture.dtype == np.uint8 else picture.astype(np.uint8) * 255
        grey = np.asarray(Image.fromarray(eight_bit).convert("L"))
        shown.append(_shown(grey, size))
        for _ in range(PIECES):
            side = int(min(grey.shape) * random.uniform(0.4, 0.95))
            top, left = (int(random.integers(0, length - side + 1)) for length in grey.shape)
            shown.append(_shown(grey[top : top + side, left : left + side], size))
    return np.stack(shown)


def dicom_slices(size: int) -> Films:
    """Every CT and MR file that pydicom carries and that can be read."""
    import pydicom.data

    shown = []
    for path in sorted((Path(str(pydicom.data.__file__)).parent / "test_files").rglob("*")):
        if not path.is_file():
            continue
        try:
            film = read_film(path.read_bytes())
        except FilmError:  # many of them are broken on purpose
            continue
        if film.modality in ("CT", "MR"):
            shown.append(render(film, _contract(size))[..., 0])
    return np.stack(shown)


def volume_slices(size: int) -> Films:
    import nibabel

    volume = np.asarray(nibabel.load(Path(str(nibabel.__file__)).parent / "tests/data/anatomical.nii").dataobj, float)
    shown = []
    for axis in range(3):
        for depth in (0.3, 0.4, 0.5, 0.6, 0.7):
            cut = np.take(volume, int(volume.shape[axis] * depth), axis)
            bright = np.percentile(cut, 99.5) - cut.min() + 1e-9
            shown.append(_shown((np.clip((cut - cut.min()) / bright, 0, 1) * 255).astype(np.uint8), size))
    return np.stack(shown)


def _patterns(size: int, random: np.random.Generator) -> Films:
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    across = np.arange(size)
    boards = [((np.add.outer(across // n, across // n) % 2) * 200 + 30).astype(np.uint8) for n in range(2, size // 4)]
    waves = []
    for _ in range(len(boards)):
        phase = columns * random.normal() + rows * random.normal() + 0.3 * np.hypot(rows, columns)
        waves.append(((np.sin(phase * random.uniform(6, 60)) * 0.5 + 0.5) * 255).astype(np.uint8))
    return np.stack([*boards, *waves])


def _torn(film: Films, random: np.random.Generator) -> Films:
    """Its sixteen squares in another order."""
    side = len(film) // 4
    squares = film[: 4 * side, : 4 * side].reshape(4, side, 4, side).swapaxes(1, 2).reshape(16, side, side)
    mixed = squares[random.permutation(16)].reshape(4, 4, side, side).swapaxes(1, 2).reshape(4 * side, 4 * side)
    return np.asarray(Image.fromarray(mixed).resize(film.shape[::-1]))


def twos(films: Films) -> Iterator[tuple[Films, Films]]:
    """Thirty pairs of films at most, none in two of them."""
    return zip(films[:60:2], films[1:60:2], strict=False)


def beside(first: Films, second: Films) -> Films:
    """Both at half their width, edge to edge, in the shape of one."""
    size = len(first)
    halves = [np.asarray(Image.fromarray(film).resize((size // 2, size))) for film in (first, second)]
    return np.asarray(Image.fromarray(np.concatenate(halves, axis=1)).resize((size, size)))


def _row(films: Films) -> Films:
    size = films.shape[-1]
    return np.asarray(Image.fromarray(np.concatenate([*films], axis=1)).resize((size, size)))


def _at_angle(film: Films, index: int) -> Films:
    return np.asarray(Image.fromarray(film).rotate(45 + 90 * (index % 4)))


def _shown(grey: Films, size: int) -> Films:
    """As a caller's PNG comes to the model."""
    data = io.BytesIO()
    Image.fromarray(grey).save(data, "PNG")
    return np.ascontiguousarray(render(read_film(data.getvalue()), _contract(size))[..., 0])


def _contract(size: int) -> InputContract:
    return InputContract(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
