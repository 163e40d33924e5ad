"""HeldFile: a file that stays open between reads and writes in place, and is always the one that stands at its path."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class HeldFile:
    """Made where there is none, for this user alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def handle(self) -> int:
        """Opened anew where the file has been moved away, or another has been put in its place. Raises OSError."""
        if self._handle is None or not self._is_there(self._handle):
            self.close()
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._handle

    def _is_there(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(handle))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with suppress(OSError):
                os.close(handle)

    def __del__(self) -> None:
        self.close()


def write_all(handle: int, content: bytes, offset: int) -> None:
    """Raises OSError where not all of it could be written, as on a full disk."""
    if os.pwrite(handle, content, offset) != len(content):
        raise OSError("the file could not be written to its end")
