"""Trunk: one forward over many films, each through several adapters, its lower blocks run once.

    film 1 --embed--> block 0 --> block 1 --> block 2 -+--> block 3 (base) -----------> features of (film 1, base)
                                                       +--> block 3 through slot 4 ---> features of (film 1, slot 4)
                                     adapters begin ---'    (an adapter that begins at block 3 changes nothing below it)
    film 2, held before block 2 ----------> block 2 ---+--> ...

A line is a film through one slot. Lines of a film are one line, that of the base, up to the block where their adapter
begins. States of the base on the way can be held by the caller, and a film may enter where it was held. A film that nobody
waits for any more is left out from the next block on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foundation.backbone import ImageFeatures
from foundation.look import AS_IT_IS, Look
from foundation.towers.tower import TowerOutput, TrunkState, block_index

if TYPE_CHECKING:
    from adapters.bank import AdapterBank
    from adapters.lora import LoraWeights
    from foundation.backbone import Backbone

EMBED = -1  # the stage before block 0


def first_block(weights: LoraWeights) -> int:
    """The first block an adapter changes; EMBED where it changes something that lies in no block."""
    return min(block_index(name) for name in weights.pairs)


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Way:
    """Through which slot a film is to be looked at, and the block where that slot's adapter begins."""

    slot: int
    first: int


@dataclass(frozen=True, eq=False)
class Wanted:
    """A film (S, S, 3) and its distinct ways; held: a state of the base that stands before block `at`, if there is one.

    look: how the tower is shown the film. is_left: whether nobody waits for it.
    `at` must not lie above the first block of any way that has an adapter.
    """

    pixels: npt.NDArray[np.uint8]
    ways: tuple[Way, ...]
    held: TrunkState | None = None
    at: int = EMBED
    look: Look = AS_IT_IS
    is_left: Callable[[], bool] = _never

    def rows(self, side: int) -> float:
        """What all its ways cost, in films of the tower's own `side`."""
        return len(self.ways) * self.look.rows(side)


@dataclass(frozen=True, eq=False)
class Looked:
    """features by (film's index, slot), each of one film (B = 1); states of the base by (film's index, block).

    A film that was left half-way has none; in_vain: what was done for such, in films of the tower's own size.
    """

    features: Mapping[tuple[int, int], ImageFeatures]
    states: Mapping[tuple[int, int], TrunkState]
    in_vain: float = 0.0


@dataclass(eq=False)
class _Run:
    """The lines under way, (film's index, slot), and where they stand; the films that were left; blocks run for such."""

    lines: list[tuple[int, int]] = field(default_factory=list)
    state: TrunkState | None = None
    left: set[int] = field(default_factory=set)
    blocks_in_vain: int = 0


class Trunk:
    def __init__(self, backbone: Backbone, bank: AdapterBank) -> None:
        self._backbone = backbone
        self._tower = backbone.image_tower
        self._bank = bank
        self.rows = 0  # lines run to their end so far
        self.block_rows = 0  # lines times blocks so far

    @property
    def side(self) -> int:
        """Of the squares the tower takes as they are."""
        return self._backbone.contract.size

    @property
    def depth(self) -> int:
        return len(self._tower.blocks)

    @torch.inference_mode()
    def run(self, films: Sequence[Wanted], keep: Collection[int] = ()) -> Looked:
        """Every way of every film, one forward a look. keep: the blocks before which states of the base are given back."""
        features, states = dict[tuple[int, int], ImageFeatures](), dict[tuple[int, int], TrunkState]()
        in_vain = 0.0
        for look in dict.fromkeys(film.look for film in films):
            places = [place for place, film in enumerate(films) if film.look == look]
            looked = self._run([films[place] for place in places], keep)
            features |= {(places[film], slot): one for (film, slot), one in looked.features.items()}
            states |= {(places[film], block): one for (film, block), one in looked.states.items()}
            in_vain += looked.in_vain * look.rows(self.side)
        return Looked(features, states, in_vain)

    def _run(self, films: Sequence[Wanted], keep: Collection[int]) -> Looked:
        """Films in one look, in one forward."""
        run, states, block = _Run(), dict[tuple[int, int], TrunkState](), 0
        self._let_go(run, films, 0)
        self._embed(run, films)
        stages = {0, self.depth, *keep, *(film.at for film in films), *(way.first for film in films for way in film.ways)}
        for stage in sorted(stage for stage in stages if 0 <= stage <= self.depth):
            self._advance(run, films, block, stage)
            block = stage
            self._arrive(run, films, stage)
            if stage in keep:
                bases = ((line, number) for line, number in enumerate(run.lines) if number[1] == 0)
                states |= {(film, stage): _rows(run.state, [line]) for line, (film, _) in bases}
            self._part(run, films, stage)
        return Looked(self._finish(run), states, run.blocks_in_vain / self.depth)

    def _embed(self, run: _Run, films: Sequence[Wanted]) -> None:
        """Start the base's line of each film that is not held, and the lines of adapters that begin before block 0."""
        here = [(index, film) for index, film in enumerate(films) if index not in run.left]
        run.lines = [(index, 0) for index, film in here if film.at == EMBED and _base_until(film, self.depth) > EMBED]
        run.lines += [(index, way.slot) for index, film in here for way in film.ways if way.first == EMBED]
        if not run.lines:
            return
        distinct = list(dict.fromkeys(index for index, _ in run.lines))
        pixels = self._backbone.pixels(np.stack([films[index].pixels for index in distinct]))
        if len(distinct) < len(run.lines):
            place = {index: number for number, index in enumerate(distinct)}
            pixels = pixels[[place[index] for index, _ in run.lines]]
        with self._through(run):
            run.state = self._tower.embed(films[0].look.of(pixels))

    def _advance(self, run: _Run, films: Sequence[Wanted], start: int, stop: int) -> None:
        """Through blocks start .. stop - 1; before each, films that nobody waits for any more are let go."""
        block = start
        while block < stop:
            self._let_go(run, films, block)
            if run.state is None:
                return
            with self._through(run):
                block = self._until_left(run, films, block, stop)

    def _until_left(self, run: _Run, films: Sequence[Wanted], block: int, stop: int) -> int:
        """The lines as they are, up to `stop` or until one of them is for nobody; the block before which they stand then."""
        while True:
            assert run.state is not None
            run.state = self._tower.run(run.state, block, block + 1)
            self.block_rows += len(run.lines)
            block += 1
            if block == stop or _left(run, films):
                return block

    def _let_go(self, run: _Run, films: Sequence[Wanted], block: int) -> None:
        """End the lines of films that nobody waits for any more. block: how many they have been through."""
        gone = _left(run, films)
        if not gone:
            return
        run.left |= gone
        kept = [number for number, (index, _) in enumerate(run.lines) if index not in gone]
        run.blocks_in_vain += block * (len(run.lines) - len(kept))
        if len(kept) < len(run.lines):
            run.state = _rows(run.state, kept) if kept else None
            run.lines = [run.lines[number] for number in kept]

    def _arrive(self, run: _Run, films: Sequence[Wanted], stage: int) -> None:
        """Films that are held before this block join."""
        for index, film in enumerate(films):
            if film.held is not None and film.at == stage and index not in run.left:
                run.state = film.held if run.state is None else _joined(run.state, film.held)
                run.lines.append((index, 0))

    def _part(self, run: _Run, films: Sequence[Wanted], stage: int) -> None:
        """Adapters that begin here leave the base's line of their film; base lines that nobody needs from here on end."""
        place = {line: number for number, line in enumerate(run.lines)}
        lines = [line for line in run.lines if line[1] or stage < _base_until(films[line[0]], self.depth)]
        sources = [place[line] for line in lines]
        for index, film in enumerate(films):
            for way in film.ways if index not in run.left else ():
                if way.slot and way.first == stage:
                    lines.append((index, way.slot))
                    sources.append(place[index, 0])
        if run.state is not None and sources != list(range(len(run.lines))):
            run.state = _rows(run.state, sources)
        run.lines = lines

    def _finish(self, run: _Run) -> dict[tuple[int, int], ImageFeatures]:
        if run.state is None:
            return {}
        with self._through(run):
            output: TowerOutput = self._tower.finish(run.state)
        features = self._backbone.features(output)
        self.rows += len(run.lines)
        return {line: _row(features, number) for number, line in enumerate(run.lines)}

    def _through(self, run: _Run) -> AbstractContextManager[None]:
        return self._bank.rows([slot for _, slot in run.lines])


def _left(run: _Run, films: Sequence[Wanted]) -> set[int]:
    """The films that have been left since the last look."""
    return {index for index, film in enumerate(films) if index not in run.left and film.is_left()}


def _base_until(film: Wanted, depth: int) -> int:
    """The block before which the base's line of a film may end; above `depth` where its end is wanted."""
    return max(depth + 1 if way.slot == 0 else way.first for way in film.ways)


def _rows(state: TrunkState | None, rows: Sequence[int]) -> TrunkState:
    assert state is not None
    index = torch.tensor(list(rows), dtype=torch.long, device=state.hidden.device)
    return TrunkState(state.hidden[index], state.grid, tuple(level[index] for level in state.levels))


def _joined(one: TrunkState, two: TrunkState) -> TrunkState:
    levels = tuple(_cat(a, b) for a, b in zip(one.levels, two.levels, strict=True))
    return TrunkState(_cat(one.hidden, two.hidden), one.grid, levels)


def _cat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b])


def _row(features: ImageFeatures, index: int) -> ImageFeatures:
    here = slice(index, index + 1)
    levels = tuple(level[here] for level in features.levels)
    return ImageFeatures(features.embedding[here], features.tokens[here], levels, features.grid)
