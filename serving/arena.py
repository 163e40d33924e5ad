"""Arena: memory that two processes share, so that a film's pixels cross between them without a socket.

    decoder --its own arena, one place--> front --the engine's arena, many places--> engine

Each decoder has an arena of its own: what a film may do to the decoder that reads it, it sees no other film. The owner
hands out places and takes them back; whoever reads copies at once, so a place is free again as soon as the reader has had
its message. An anonymous file, sealed, so that no peer can make it shorter under the other's feet; it ends with its last
holder.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from foundation.errors import EngineUnavailable

_SEALS = 0x0001 | 0x0002 | 0x0004  # no more seals, no shrinking, no growing
_ADD_SEALS = 1033  # F_ADD_SEALS


class Arena:
    """`size` bytes, pages of which take memory once they are used. For one thread of each process."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self._memory = mmap.mmap(handle, 0)
        self.size = len(self._memory)
        self._place_bytes = 0  # of all places, that of the first film put here
        self._free: list[int] = []

    @classmethod
    def create(cls, size: int) -> Arena:
        """Raises EngineUnavailable where this machine gives no more."""
        try:
            handle = os.memfd_create("vesalius-films", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            why = f"No memory can be shared with another process ({error.strerror}). Allow more memory or open files."
            raise EngineUnavailable(why) from None
        os.ftruncate(handle, size)
        seal(handle)
        return cls(handle)

    def put(self, pixels: npt.NDArray[np.uint8]) -> int | None:
        """Copy a film in; its place, or None where there is none left or it is of another size than the first."""
        if not self._place_bytes and pixels.nbytes:
            self._place_bytes = pixels.nbytes
            self._free = [number * pixels.nbytes for number in reversed(range(self.size // pixels.nbytes))]
        if pixels.nbytes != self._place_bytes or not self._free:
            return None
        place = self._free.pop()  # the last one freed, so that few pages are ever touched
        self.write(place, pixels)
        return place

    def free(self, place: int) -> None:
        assert place not in self._free
        self._free.append(place)

    def write(self, place: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Copy a film to a place of the caller's choosing. Raises ValueError past the end."""
        self._memory[place : place + pixels.nbytes] = np.ascontiguousarray(pixels).data.cast("B")

    def read(self, place: int, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
        """A copy. Raises ValueError past the end, whatever a peer claims."""
        count = math.prod(shape)
        if place < 0 or count < 0 or place + count > self.size:
            raise ValueError("no such place in the arena")
        return np.frombuffer(self._memory, np.uint8, count, place).reshape(tuple(shape)).copy()

    def close(self) -> None:
        self._memory.close()
        os.close(self.handle)


def seal(handle: int) -> None:
    """Fix the length of an anonymous file."""
    fcntl.fcntl(handle, _ADD_SEALS, _SEALS)
