"""What the decoder made of recent films: keys and values of a picture, its findings and what was said about it.

A later question about the film starts where the longest beginning it shares with what is kept here ends; only the rest
is computed. A conversation that goes on takes the place of its own beginning. As with the features (`feature_cache.py`),
nothing kept for one tenant is ever used for another, and `forget` finds all that is kept of a film.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PictureKey:
    """study: the film's digest; picture: SHA-256 of the patch tokens; adapter: digest of the decoder's, "" for none."""

    tenant: str
    study: str
    picture: str
    adapter: str = ""

    @classmethod
    def of(cls, tenant: str, study: str, patch_tokens: Tensor, adapter: str = "") -> PictureKey:
        seen = patch_tokens.detach().float().cpu().contiguous().numpy().tobytes()
        return cls(tenant, study, hashlib.sha256(seen).hexdigest(), adapter)


@dataclass(frozen=True)
class Passage:
    """Keys and values (layers, 2, H, n, d) of the token ids (n) behind them."""

    key: PictureKey
    ids: tuple[int, ...]
    held: Tensor

    @property
    def size_bytes(self) -> int:
        return self.held.numel() * self.held.element_size() + 32 * len(self.ids)


class PrefixCache:
    """At most `capacity_bytes`; what was used least recently goes first. For the engine's one thread."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._held: OrderedDict[tuple[PictureKey, tuple[int, ...]], Passage] = OrderedDict()
        self._of_picture: dict[PictureKey, list[Passage]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def longest(self, key: PictureKey, ids: Sequence[int]) -> Tensor | None:
        """Keys and values of the longest beginning of `ids` that is kept: (layers, 2, H, n, d), or None."""
        found, length = None, 0
        for passage in self._of_picture.get(key, ()):
            shared = _shared(passage.ids, ids)
            if shared > length:
                found, length = passage, shared
        if found is None:
            return None
        self._held.move_to_end((key, found.ids))
        return found.held[:, :, :, :length]

    def put(self, key: PictureKey, ids: Sequence[int], held: Tensor) -> None:
        """Keep `held`, a copy of the caller's; what it goes on from is dropped, and it too if something goes on from it."""
        new = Passage(key, tuple(ids), held)
        if new.size_bytes > self.capacity_bytes:
            return
        for passage in list(self._of_picture.get(key, ())):
            shared = _shared(passage.ids, new.ids)
            if shared == len(new.ids):
                self._held.move_to_end((key, passage.ids))
                return
            if shared == len(passage.ids):
                self._drop(passage)
        self._held[key, new.ids] = new
        self._of_picture.setdefault(key, []).append(new)
        self.held_bytes += new.size_bytes
        while self.held_bytes > self.capacity_bytes:
            self._drop(next(iter(self._held.values())))

    def forget(self, tenant: str, study: str = "") -> int:
        """Drop what is kept of one tenant's film, or of all of the tenant's films; how many entries that were."""
        gone = [one for one in self._held.values() if one.key.tenant == tenant and study in ("", one.key.study)]
        for passage in gone:
            self._drop(passage)
        return len(gone)

    def _drop(self, passage: Passage) -> None:
        del self._held[passage.key, passage.ids]
        self.held_bytes -= passage.size_bytes
        left = [one for one in self._of_picture[passage.key] if one is not passage]
        if left:
            self._of_picture[passage.key] = left
        else:
            del self._of_picture[passage.key]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common from the first on."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
