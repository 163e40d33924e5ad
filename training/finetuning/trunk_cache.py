"""What frozen things make of the training films, computed once and memory-mapped from a cache folder.

    film_cache(paths)   (N, S, S, C) uint8      each film as the one preprocess renders it, C = 1 where all are grey
    look_cache(films)   (N, F) float32          the pooled levels of each film in further looks
    TrunkCache          (N, V, T, D) float16    V views of each film after the blocks below the first adapted one
                        (N, V, F) float32       where asked for, the levels on the way there, pooled (`levels.py`)

Both are found again by a digest over all that went into them, so a second run starts at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from adapters.tasks.levels import pool_levels, pools_in
from foundation.device import autocast_bf16
from foundation.errors import InvalidRequest
from foundation.look import Look
from foundation.preprocess import InputContract, render
from foundation.readers import read_film
from foundation.towers.tower import ImageTower, TrunkState
from training.augment import AugmentStrength, augment
from training.processes import main_first
from training.whole_file import whole

Item = TypeVar("Item")


def film_cache(
    paths: Sequence[Path], contract: InputContract, folder: Path, *, is_quiet: bool = False
) -> npt.NDArray[np.uint8]:
    """The films as the model sees them before normalisation, memory-mapped read-only."""
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    target = folder / f"films-{_digest('films', asdict(contract), stamps)}.npy"
    with main_first():
        if not target.is_file():
            try:
                _render_all(paths, contract, target, 1, is_quiet)
            except _ColourError:
                _render_all(paths, contract, target, 3, is_quiet)
    return np.load(target, mmap_mode="r")  # type: ignore[no-any-return]


def to_pixels(films: npt.NDArray[np.uint8] | Tensor, contract: InputContract) -> Tensor:
    """(B, S, S, C) uint8, or (B, C, S, S) float in 0..1 -> normalised (B, 3, S, S), as `preprocess.normalise` does."""
    values = films if isinstance(films, Tensor) else to_unit(films)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (contract.mean, contract.std))
    return (values.expand(-1, 3, -1, -1) - mean) / std


def augmented_pixels(films: npt.NDArray[np.uint8], contract: InputContract, strength: AugmentStrength, seed: int) -> Tensor:
    """(B, S, S, C) uint8 -> normalised (B, 3, S, S) of one augmented view each; the same seed gives the same views."""
    values = to_unit(films)
    channels = [  # the same seed for each channel: a colour film is moved as one
        augment(values[:, c : c + 1], contract.size, strength, torch.Generator().manual_seed(seed))
        for c in range(values.shape[1])
    ]
    return to_pixels(torch.cat(channels, dim=1), contract)


@dataclass(frozen=True, eq=False)
class TrunkCache:
    """hidden (N, V, T, D) before block `first_block`, on a grid of (h, w); view 0 is the film itself.

    below: (N, V, F) the levels taken before that block, pooled by `pools`; None where no pools were asked for.
    """

    hidden: npt.NDArray[np.float16]
    grid: tuple[int, int]
    first_block: int
    below: npt.NDArray[np.float32] | None = None

    def state(self, films: Sequence[int], views: Sequence[int]) -> Tensor:
        """(B, T, D) float16 for pairs of film and view."""
        return torch.from_numpy(self.hidden[list(films), list(views)])

    def batch(self, films: Sequence[int], views: Sequence[int]) -> dict[str, Any]:
        """What `AdaptedTower.features` takes: `hidden`, `grid` and, where the levels were pooled, `below`."""
        batch: dict[str, Any] = {"hidden": self.state(films, views), "grid": self.grid}
        if self.below is not None:
            batch["below"] = torch.from_numpy(self.below[list(films), list(views)])
        return batch

    @classmethod
    @torch.inference_mode()
    def build(
        cls,
        tower: ImageTower,
        fingerprint: str,
        films: npt.NDArray[np.uint8],
        contract: InputContract,
        folder: Path,
        *,
        first_block: int,
        views: int,
        strength: AugmentStrength,
        seed: int,
        precision: str = "fp32",
        pools: Sequence[str] = (),
        is_quiet: bool = False,
        batch_size: int = 32,
    ) -> TrunkCache:
        """Run every view of every film through the frozen blocks, or find the result of an earlier run."""
        made_of = (
            fingerprint,
            _source(films),
            asdict(contract),
            first_block,
            views,
            asdict(strength),
            seed,
            precision,
            list(pools),
        )
        target = folder / f"trunk-{_digest('trunk', *made_of)}.npy"
        pooled = target.with_name(target.name.replace("trunk-", "levels-"))
        device = next(tower.parameters()).device

        def run(pixels: Tensor) -> TrunkState:
            with autocast_bf16(device, wanted=precision == "bf16"):
                return tower.run(tower.embed(pixels.to(device)), 0, first_block)

        probe = run(to_pixels(films[:1], contract))

        def fill(partial: Path) -> npt.NDArray[np.float32]:
            """All states into the file; returns the pooled levels."""
            shape = (len(films), views, *probe.hidden.shape[1:])
            hidden = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
            size = sum(level.shape[1] for level in probe.levels) * len(pools)
            below = np.zeros((len(films), views, size), np.float32)
            for start in _track(range(0, len(films), batch_size), "films through the frozen blocks", is_quiet):
                chunk = np.asarray(films[start : start + batch_size])
                for view in range(views):
                    own_seed = int(_digest(seed, start, view), 16) % 2**62
                    pixels = to_pixels(chunk, contract)
                    if view:
                        pixels = augmented_pixels(chunk, contract, strength, own_seed)
                    state = run(pixels)
                    if size:
                        below[start : start + len(chunk), view] = pool_levels(state.levels, pools).cpu().numpy()
                    values = state.hidden.float().cpu().numpy()
                    if not np.abs(values).max() < np.finfo(np.float16).max:
                        raise InvalidRequest(
                            "The frozen blocks give values beyond float16; set views.cached = 0 in the recipe.",
                            param="cached",
                        )
                    hidden[start : start + len(chunk), view] = values
            hidden.flush()
            return below

        with main_first():
            if not target.is_file() or (pools and not pooled.is_file()):
                with whole(target) as partial:
                    below = fill(partial)
                    if pools:
                        with whole(pooled) as levels:
                            np.save(levels, below)
        return cls(np.load(target, mmap_mode="r"), probe.grid, first_block, np.load(pooled) if pools else None)


@torch.inference_mode()
def look_cache(
    tower: ImageTower,
    fingerprint: str,
    films: npt.NDArray[np.uint8],
    contract: InputContract,
    folder: Path,
    *,
    looks: Sequence[Look],
    pools: Sequence[str],
    size_pools: Sequence[str] = (),
    precision: str = "fp32",
    is_quiet: bool = False,
    batch_size: int = 32,
) -> npt.NDArray[np.float32]:
    """The levels of the films in each look, pooled, look by look: (N, F). Each look is kept by itself and found again.

    pools: of looks at the tower's own size; size_pools: of those at others, where they differ. batch_size: of films at the
    tower's own size; fewer run at once where they are larger, which a processor's caches take better.
    """
    device = next(tower.parameters()).device

    def see(look: Look) -> npt.NDArray[np.float32]:
        names = pools_in(look, pools, size_pools)
        made_of = (fingerprint, _source(films), asdict(contract), str(look), list(names), precision)
        target = folder / f"look-{_digest('look', *made_of)}.npy"
        with main_first():
            if not target.is_file():
                rows = []
                step = max(1, round(batch_size / look.rows(contract.size)))
                for start in _track(range(0, len(films), step), f"films at look {look}", is_quiet):
                    pixels = to_pixels(np.asarray(films[start : start + step]), contract).to(device)
                    with autocast_bf16(device, wanted=precision == "bf16"):
                        levels = tower(look.of(pixels)).levels
                    rows.append(pool_levels(levels, names).cpu().numpy())
                with whole(target) as partial:
                    np.save(partial, np.concatenate(rows))
        return np.load(target)  # type: ignore[no-any-return]

    return np.concatenate([see(look) for look in looks], axis=1)


def _source(films: npt.NDArray[np.uint8]) -> str:
    """The cache file the films are mapped from, else a digest of them."""
    return Path(str(getattr(films, "filename", "") or "")).name or _digest(films.tobytes())


class _ColourError(Exception):
    """A film is not grey; the cache needs three channels."""


def _render_all(paths: Sequence[Path], contract: InputContract, target: Path, channels: int, is_quiet: bool) -> None:
    shape = (len(paths), contract.size, contract.size, channels)
    with whole(target) as partial:
        films = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        for index, path in enumerate(_track(paths, "reading films", is_quiet)):
            film = render(read_film(path.read_bytes()), contract)
            if channels == 1 and (film != film[..., :1]).any():
                raise _ColourError
            films[index] = film[..., :channels]
        films.flush()


def to_unit(films: npt.NDArray[np.uint8]) -> Tensor:
    """(B, S, S, C) uint8 -> (B, C, S, S) float32 in 0..1."""
    return torch.from_numpy(np.array(films.transpose(0, 3, 1, 2), order="C")).float() / 255


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part, default=str).encode())
    return digest.hexdigest()[:24]


def _track(items: Sequence[Item], words: str, is_quiet: bool) -> Iterable[Item]:
    return track(items, description=words, console=Console(stderr=True), disable=is_quiet, total=len(items))
