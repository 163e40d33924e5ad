"""Films and what is known of them, as arrays ready for pretraining.

A film cache is one memory-mapped (N, S, S) uint8 file, every film rendered by the one preprocess; its twin
`targets` holds what is known about each film, NaN where nothing is. Labels are only comparable inside a source, so
a target's value is NaN for films of every other source. Films are drawn by stream (a source, or the phantoms),
each stream with its share of a batch, films of one patient sharing that patient's weight.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foundation.errors import InvalidRequest
from foundation.phantom import FINDINGS as PHANTOM_FINDINGS
from foundation.phantom import make_phantom
from foundation.preprocess import InputContract, render
from foundation.prompts import NIH_FINDINGS
from foundation.readers import read_film
from training.manifests.manifest import Row
from training.manifests.sentences import label_sentences
from training.whole_file import whole

PHANTOM_STREAM = "phantom"


@dataclass(frozen=True, eq=False)
class FilmTable:
    """N films: pixels (N, S, S) uint8, targets (N, K) float32 with NaN for unknown, one stream name and a few texts each.

    native_pixels holds the shorter side a film was kept at, so that training can hide what resolution gives away.
    masks (N, F, G, G) float16: for phantoms the fraction of each cell of a G x G grid a finding covers; None for real films.
    """

    pixels: npt.NDArray[np.uint8]
    target_names: tuple[str, ...]
    targets: npt.NDArray[np.float32]
    texts: tuple[tuple[str, ...], ...]
    streams: tuple[str, ...]
    weights: npt.NDArray[np.float64]
    native_pixels: npt.NDArray[np.int32]
    masks: npt.NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def cache_films(paths: Sequence[Path], size: int, folder: Path) -> npt.NDArray[np.uint8]:
    """Grey films (N, size, size) uint8, memory-mapped from `folder`; made on the first call, found again by digest."""
    key = hashlib.sha256(f"{size}\n".encode() + "\n".join(map(str, paths)).encode()).hexdigest()[:16]
    target = folder / f"films-{size}-{key}.npy"
    if not target.is_file():
        with whole(target) as written, ProcessPoolExecutor(2) as pool:
            films = np.lib.format.open_memmap(written, mode="w+", dtype=np.uint8, shape=(len(paths), size, size))
            for index, film in enumerate(pool.map(partial(render_grey, size=size), paths, chunksize=64)):
                films[index] = film
            films.flush()
    return np.load(target, mmap_mode="r")  # type: ignore[no-any-return]


def render_grey(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """The film in that file as (size, size) uint8, by the one preprocess."""
    contract = InputContract(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return np.ascontiguousarray(render(read_film(path.read_bytes()), contract)[..., 0])


def real_target_names() -> tuple[str, ...]:
    """Names of everything the manifest can tell of a film; `source: label` where a label holds inside one source only."""
    return (*NIH_FINDINGS, "normal", "tuberculosis", "child pneumonia", "bacterial", "ap view", "female", "age")


def row_targets(row: Row) -> dict[str, float]:
    """What one manifest row says, as target values in 0..1; names that are absent are unknown."""
    known: dict[str, float] = {}
    labels = set(row.labels)
    source = str(row.get("source", ""))
    if source == "nih_cxr14":
        known |= {name: float(name in labels) for name in NIH_FINDINGS}
        known["normal"] = float("normal" in labels)
        known["ap view"] = float(row.get("view") == "AP")
    elif source == "shenzhen":
        known["tuberculosis"] = float("normal" not in labels)
    elif source == "kermany":
        known["child pneumonia"] = float("normal" not in labels)
        if "normal" not in labels:
            known["bacterial"] = float(any("bacterial" in label for label in labels))
    if row.get("sex") in ("M", "F"):
        known["female"] = float(row.get("sex") == "F")
    age = row.get("age")
    if isinstance(age, (int, float)):
        known["age"] = min(float(age) / 100.0, 1.0)
    return known


def real_films(rows: Sequence[Row], size: int, cache: Path) -> FilmTable:
    """The manifest's rows as a table at `size` pixels; streams are the sources."""
    names = real_target_names()
    targets = np.full((len(rows), len(names)), np.nan, np.float32)
    for index, row in enumerate(rows):
        for name, value in row_targets(row).items():
            targets[index, names.index(name)] = value
    films_of = Counter(row.patient_id for row in rows)
    return FilmTable(
        pixels=cache_films([row.image for row in rows], size, cache),
        target_names=names,
        targets=targets,
        texts=tuple((row.text,) if row.text else label_sentences(row.labels, index) for index, row in enumerate(rows)),
        streams=tuple(str(row.get("source", "films")) for row in rows),
        weights=np.array([films_of[row.patient_id] ** -0.5 for row in rows]),
        native_pixels=np.array([min(row.get("size") or (size,)) for row in rows], np.int32),
    )


def phantom_target_names() -> tuple[str, ...]:
    """`phantom effusion`, `phantom effusion left`, `phantom effusion right`, ... for each finding."""
    return tuple(f"phantom {name}{side}" for name in PHANTOM_FINDINGS for side in ("", " left", " right"))


def phantom_films(count: int, size: int, first_seed: int, cache: Path, grid: int = 7) -> FilmTable:
    """`count` phantoms with seeds from `first_seed` on, as a table at `size` pixels with finding masks on a grid."""
    target = cache / f"phantoms-{size}-{first_seed}-{count}-{grid}.npz"
    if not target.is_file():
        make = partial(_one_phantom, size=size, grid=grid)
        with ProcessPoolExecutor(2) as pool:
            made = list(pool.map(make, range(first_seed, first_seed + count), chunksize=32))
        pixels, targets, masks, texts = (np.stack(column) for column in zip(*made, strict=True))
        with whole(target) as written:
            np.savez(written, pixels=pixels, targets=targets, masks=masks, texts=texts)
    with np.load(target, allow_pickle=False) as held:
        return FilmTable(
            pixels=held["pixels"],
            target_names=phantom_target_names(),
            targets=held["targets"],
            texts=tuple((text,) for text in held["texts"].tolist()),
            streams=(PHANTOM_STREAM,) * count,
            weights=np.ones(count),
            native_pixels=np.full(count, size, np.int32),
            masks=held["masks"],
        )


def _one_phantom(
    seed: int, size: int, grid: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float16], str]:
    phantom = make_phantom(seed, size)
    names = phantom_target_names()
    targets = np.zeros(len(names), np.float32)
    masks = np.zeros((len(PHANTOM_FINDINGS), grid, grid), np.float16)
    for finding in phantom.findings:
        sides = ("left", "right") if finding.side == "bilateral" else (finding.side,)
        for suffix in ("", *(f" {side}" for side in sides if side in ("left", "right"))):
            targets[names.index(f"phantom {finding.name}{suffix}")] = 1.0
    for index, name in enumerate(PHANTOM_FINDINGS):
        if name in phantom.masks:
            masks[index] = _cell_fractions(phantom.masks[name], grid)
    return phantom.film, targets, masks, phantom.report


def _cell_fractions(mask: npt.NDArray[np.bool_], grid: int) -> npt.NDArray[np.float16]:
    edges = np.linspace(0, mask.shape[0], grid + 1).astype(int)
    rows = np.add.reduceat(mask.astype(np.float32), edges[:-1], axis=0)
    cells = np.add.reduceat(rows, edges[:-1], axis=1)
    fractions: npt.NDArray[np.float16] = (cells / np.outer(np.diff(edges), np.diff(edges))).astype(np.float16)
    return fractions


def join(tables: Sequence[FilmTable], grid: int = 7) -> FilmTable:
    """One table of several; unknown targets are NaN. Pixels stay where they are (memory-mapped), behind one index."""
    names = tuple(dict.fromkeys(name for table in tables for name in table.target_names))
    targets = np.full((sum(map(len, tables)), len(names)), np.nan, np.float32)
    masks = np.full((len(targets), len(PHANTOM_FINDINGS), grid, grid), np.nan, np.float16)
    start = 0
    for table in tables:
        columns = [names.index(name) for name in table.target_names]
        targets[start : start + len(table), columns] = table.targets
        if table.masks is not None:
            masks[start : start + len(table)] = table.masks
        start += len(table)
    return FilmTable(
        pixels=np.concatenate([table.pixels for table in tables]),
        target_names=names,
        targets=targets,
        texts=tuple(text for table in tables for text in table.texts),
        streams=tuple(stream for table in tables for stream in table.streams),
        weights=np.concatenate([table.weights for table in tables]),
        native_pixels=np.concatenate([table.native_pixels for table in tables]),
        masks=masks,
    )


def known_means(targets: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(N, K) with NaN for unknown -> (K,) the mean of what is known; 0.5 where nothing is."""
    count = (~np.isnan(targets)).sum(axis=0)
    means = np.nansum(targets, axis=0) / np.maximum(count, 1)
    return np.where(count > 0, means, 0.5).astype(np.float32)


class StreamSampler:
    """Draws batches of row indices, each stream with its share; a batch is a pure function of (seed, step)."""

    def __init__(self, table: FilmTable, shares: Mapping[str, float], batch: int, seed: int) -> None:
        streams = np.array(table.streams)
        self._members = [np.flatnonzero(streams == name) for name in shares]
        self._shares = np.array(list(shares.values()), float)
        for name, members in zip(shares, self._members, strict=True):
            if not len(members):
                known = ", ".join(sorted(set(table.streams)))
                raise InvalidRequest(f"The stream {name!r} has no films; those that have are: {known}.", param="streams")
        self._weights = [table.weights[members] / table.weights[members].sum() for members in self._members]
        self._batch, self._seed = batch, seed

    def at(self, step: int) -> npt.NDArray[np.int64]:
        """(B,) row indices of the batch of this step."""
        random = np.random.default_rng((self._seed, step))
        counts = self._shares / self._shares.sum() * self._batch
        whole = np.floor(counts + random.random(len(counts))).astype(int)
        drawn = [
            random.choice(members, min(count, len(members)), replace=False, p=weights)
            for members, weights, count in zip(self._members, self._weights, whole, strict=True)
        ]
        return np.concatenate(drawn)
