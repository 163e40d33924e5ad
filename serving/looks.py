"""Looks: the features of every view a batch asks for. What its tenant has asked about before is at hand; the rest is one
forward of the trunk, begun as high up as the films are still held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from foundation.backbone import ImageFeatures
from foundation.look import Look
from foundation.towers.tower import TrunkState
from serving.feature_cache import THE_END, FeatureCache, FeatureKey
from serving.messages import Request
from serving.residency import Residency
from serving.trunk import EMBED, Looked, Trunk, Wanted, Way
from serving.works.work import View

if TYPE_CHECKING:
    from foundation.backbone import Backbone

ViewKey = tuple[str, Look, int]
FilmKey = tuple[str, Look]
STATES_SHARE = 4  # one part in so many of the bytes is for states on the way


@dataclass(frozen=True, eq=False)
class _Ask:
    """One view one request asks for, and the digest of its pixels."""

    request: Request
    view: View
    digest: str

    @property
    def key(self) -> ViewKey:
        """Equal for equal pixels in the same look through the same adapter."""
        return self.digest, self.view.look, self.view.slot

    @property
    def film(self) -> FilmKey:
        return self.digest, self.view.look

    def held_as(self, block: int = THE_END) -> FeatureKey:
        """The key of the view's features, or, with a block, of the base's state before it, which no adapter has touched."""
        films = self.request.films
        study = next((film.digest for film in films if film.pixels is self.view.pixels), films[0].digest if films else "")
        adapter = self.view.resident.digest if self.view.resident and block == THE_END else ""
        return FeatureKey(self.request.tenant, study, f"{self.digest}@{self.view.look}", adapter, block)


@dataclass(eq=False)
class Sighting:
    """The views of one batch: `found` so far, and the forward over films `names` that `compute`, in any thread, runs."""

    trunk: Trunk
    asks: Sequence[_Ask]
    found: dict[ViewKey, ImageFeatures]
    wanted: tuple[Wanted, ...]
    blocks: tuple[int, ...]
    names: tuple[FilmKey, ...]
    askers: Mapping[FilmKey, Sequence[_Ask]]
    looked: Looked = field(default_factory=lambda: Looked({}, {}))

    @property
    def rows(self) -> float:
        """Films through the trunk, each counted once for each adapter, and an enlarged one as what its patches cost."""
        return sum(film.rows(self.trunk.side) for film in self.wanted)

    @property
    def rows_done(self) -> tuple[float, float]:
        """What was computed, in rows, once it is: all of it, and what of it nobody waits for any more."""
        whole = {index for index, _ in self.looked.features}
        rows = [(self.wanted[index].rows(self.trunk.side), self.wanted[index].is_left()) for index in whole]
        in_vain = self.looked.in_vain + sum(some for some, is_left in rows if is_left)
        return self.looked.in_vain + sum(some for some, _ in rows), in_vain

    def compute(self) -> None:
        self.looked = self.trunk.run(self.wanted, self.blocks)


class Looks:
    """Both caches and the trunk. For the engine's one thread."""

    def __init__(self, backbone: Backbone, residency: Residency, capacity_bytes: int) -> None:
        self.trunk = Trunk(backbone, residency.bank)
        self._residency = residency
        self._features: FeatureCache[ImageFeatures] = FeatureCache(capacity_bytes - capacity_bytes // STATES_SHARE)
        self._states: FeatureCache[TrunkState] = FeatureCache(capacity_bytes // STATES_SHARE)

    def forget(self, tenant: str, study: str) -> None:
        self._features.forget(tenant, study)
        self._states.forget(tenant, study)

    def at(self, asked: Sequence[tuple[Request, View]]) -> tuple[ImageFeatures, ...]:
        """The features of each view (B = 1). What anyone misses is computed, whoever else has it."""
        sighting = self.begin(asked)
        sighting.compute()
        return tuple(features for features in self.end(sighting) if features is not None)

    def begin(self, asked: Sequence[tuple[Request, View]], withdrawn: Container[int] = ()) -> Sighting:
        """What is at hand, and the forward that is missing.

        withdrawn: requests by id, asked until the forward is over; a film for such alone is left out, and has no features.
        """
        asks = list(_asks(asked))
        found: dict[ViewKey, ImageFeatures] = {}
        missing: dict[ViewKey, View] = {}
        for ask in asks:
            held = self._features.get(ask.held_as()) if self._features.capacity_bytes else None
            if held is None:
                missing[ask.key] = ask.view
            else:
                found[ask.key] = held
        return self._missing(missing, asks, found, withdrawn)

    def end(self, sighting: Sighting) -> list[ImageFeatures | None]:
        """The features of each view, once they are computed, None for one that was left out; what may be kept is."""
        found = sighting.found
        for (index, block), state in sighting.looked.states.items():
            for ask in sighting.askers[sighting.names[index]]:
                if ask.request.stores:
                    self._states.put(ask.held_as(block), state, is_own=True)
        found |= {(*sighting.names[index], slot): features for (index, slot), features in sighting.looked.features.items()}
        for ask in sighting.asks:
            if ask.request.stores and self._features.capacity_bytes and ask.key in found:
                self._features.put(ask.held_as(), found[ask.key])
        return [found.get(ask.key) for ask in sighting.asks]

    def _missing(
        self,
        missing: Mapping[ViewKey, View],
        asks: Sequence[_Ask],
        found: dict[ViewKey, ImageFeatures],
        withdrawn: Container[int],
    ) -> Sighting:
        """One forward over what is missing; states on the way are taken from where they are held."""
        films: dict[FilmKey, list[View]] = {}
        for (digest, look, _), view in missing.items():
            films.setdefault((digest, look), []).append(view)
        askers: dict[FilmKey, list[_Ask]] = {}
        for ask in asks:
            askers.setdefault(ask.film, []).append(ask)
        blocks = sorted((block for block in self._residency.first_blocks if block > 0), reverse=True)
        if not self._states.capacity_bytes:
            blocks = []
        wanted = tuple(self._wanted(views, askers[film], blocks, withdrawn) for film, views in films.items())
        return Sighting(self.trunk, asks, found, wanted, tuple(blocks), tuple(films), askers)

    def _wanted(
        self, views: Sequence[View], askers: Sequence[_Ask], blocks: Sequence[int], withdrawn: Container[int]
    ) -> Wanted:
        """A film's ways, and the highest state that everyone who asks about it has of it. blocks: falling."""
        depth = self.trunk.depth
        ways = tuple(Way(view.slot, view.resident.first_block if view.resident else depth) for view in views)
        highest = min(way.first for way in ways)
        ids = frozenset(ask.request.id for ask in askers)

        def is_left() -> bool:
            return all(number in withdrawn for number in ids)

        for block in blocks:
            held = [self._states.get(ask.held_as(block)) for ask in askers] if block <= highest else []
            if held and all(held):
                return Wanted(views[0].pixels, ways, held[0], block, views[0].look, is_left)
        return Wanted(views[0].pixels, ways, None, EMBED, views[0].look, is_left)


def _asks(asked: Sequence[tuple[Request, View]]) -> Iterator[_Ask]:
    digests: dict[int, str] = {}  # by the array: several views show one film
    for request, view in asked:
        place = id(view.pixels)
        if place not in digests:
            digests[place] = hashlib.sha256(np.ascontiguousarray(view.pixels).data).hexdigest()
        yield _Ask(request, view, digests[place])
