"""Looks: the features of every view a batch asks for. What its tenant has asked about before is at hand; the rest is one
forward of the trunk, begun as high up as the films are still held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from foundation.backbone import ImageFeatures
from foundation.towers import TrunkState
from serving.feature_cache import THE_END, FeatureCache, FeatureKey
from serving.messages import Request
from serving.residency import Residency
from serving.trunk import EMBED, Trunk, Wanted, Way
from serving.works.work import View

if TYPE_CHECKING:
    from foundation.backbone import Backbone

ViewKey = tuple[bytes, int]
Asked = Sequence[tuple[Request, View]]
STATES_SHARE = 4  # one part in so many of the bytes is for states on the way


def view_key(view: View) -> ViewKey:
    """Equal for equal pixels through the same adapter."""
    return view.pixels.tobytes(), view.slot


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

    def at(self, asked: Asked) -> dict[ViewKey, ImageFeatures]:
        """Each distinct view's features (B = 1). What anyone misses is computed, whoever else has it."""
        found: dict[ViewKey, ImageFeatures] = {}
        missing: dict[ViewKey, View] = {}
        for request, view in asked:
            held = self._features.get(_key(request, view)) if self._features.capacity_bytes else None
            if held is None:
                missing[view_key(view)] = view
            else:
                found[view_key(view)] = held
        found |= self._run(missing, asked)
        for request, view in asked:
            if request.stores and self._features.capacity_bytes:
                self._features.put(_key(request, view), found[view_key(view)])
        return found

    def _run(self, missing: Mapping[ViewKey, View], asked: Asked) -> dict[ViewKey, ImageFeatures]:
        """One forward over what is missing; states on the way are taken from where they are held, and kept."""
        films: dict[bytes, list[View]] = {}
        for (pixels, _), view in missing.items():
            films.setdefault(pixels, []).append(view)
        askers = {pixels: [(request, view) for request, view in asked if view.pixels.tobytes() == pixels] for pixels in films}
        keep = self._residency.first_blocks if self._states.capacity_bytes else ()
        wanted = [self._wanted(views, askers[pixels]) for pixels, views in films.items()]
        looked = self.trunk.run(wanted, keep)
        names = list(films)
        for (index, block), state in looked.states.items():
            for request, view in askers[names[index]]:
                if request.stores:
                    self._states.put(_key(request, view, block), state)
        return {(names[index], slot): features for (index, slot), features in looked.features.items()}

    def _wanted(self, views: Sequence[View], askers: Asked) -> Wanted:
        """A film's ways, and the highest state that everyone who asks about it has of it."""
        depth = self.trunk.depth
        ways = tuple(Way(view.slot, view.resident.first_block if view.resident else depth) for view in views)
        highest = min(way.first for way in ways)
        for block in sorted((block for block in self._residency.first_blocks if block <= highest), reverse=True):
            held = [self._states.get(_key(request, view, block)) for request, view in askers]
            if held and all(held):
                return Wanted(views[0].pixels, ways, held[0], block)
        return Wanted(views[0].pixels, ways, None, EMBED)


def _key(request: Request, view: View, block: int = THE_END) -> FeatureKey:
    """Of the view's features, or, with a block, of the base's state before it, which no adapter has touched."""
    study = next(
        (film.digest for film in request.films if film.pixels is view.pixels), request.film.digest if request.film else ""
    )
    adapter = view.resident.digest if view.resident and block == THE_END else ""
    return FeatureKey.of(request.tenant, study, view.pixels.tobytes(), adapter, block)
