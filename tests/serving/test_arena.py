"""Films in shared memory: places are handed out once, come back, and hold what was put there."""

from __future__ import annotations

import os

import numpy as np
import pytest

from serving.arena import Arena
from serving.messages import Film, Request
from serving.transport import PeerLostError, film_from_plain, pack, places_of, request_from_plain, request_to_plain, unpack

SHAPE = (4, 4, 3)


def film(value: int) -> Film:
    return Film(np.full(SHAPE, value, np.uint8), digest=f"{value:064x}")


def test_a_request_crosses_with_its_films_in_the_arena_and_not_in_the_frame() -> None:
    ours = Arena.create(1 << 12)
    theirs = Arena(os.dup(ours.handle))
    request = Request(1, "fuse", film=film(3), others=(film(4), film(5)))
    plain = request_to_plain(request, ours)
    assert len(places_of(plain)) == 3
    frame = pack(plain)
    assert film(3).pixels.tobytes() not in frame
    crossed = request_from_plain(unpack(frame[8:]), theirs)
    for there, here in zip(crossed.films, request.films, strict=True):
        np.testing.assert_array_equal(there.pixels, here.pixels)
        assert there.digest == here.digest


def test_what_was_read_stays_when_its_place_is_used_again() -> None:
    arena = Arena.create(1 << 12)
    place = arena.put(film(1).pixels)
    assert place is not None
    read = arena.read(place, SHAPE)
    arena.free(place)
    assert arena.put(film(2).pixels) == place
    assert (read == 1).all()


def test_a_full_arena_and_another_size_fall_back_to_bytes() -> None:
    arena = Arena.create(2 * 48)
    assert {arena.put(film(1).pixels), arena.put(film(2).pixels)} == {0, 48}
    plain = request_to_plain(Request(1, "embed_image", film=film(7)), arena)
    assert plain["film"]["pixels"] == film(7).pixels.tobytes()
    assert places_of(plain) == []
    arena.free(48)
    assert arena.put(np.zeros((2, 2, 3), np.uint8)) is None
    assert arena.put(film(9).pixels) == 48


@pytest.mark.parametrize("place", [-1, 1 << 12, 1 << 40])
def test_a_place_that_is_none_is_a_broken_peer(place: int) -> None:
    plain = {**request_to_plain(Request(1, "embed_image", film=film(1)))["film"], "pixels": place}
    with pytest.raises(PeerLostError):
        film_from_plain(plain, Arena.create(1 << 12))


def test_nobody_can_shorten_it() -> None:
    arena = Arena.create(1 << 12)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.handle, 16)
