"""A file that is there whole or not at all, however many processes make it at once and whenever one is killed.

    with whole(folder / "films.npy") as partial:
        np.save(partial, films)

Each writer has a partial file of its own beside the target, `STEM.partial-RANDOM.SUFFIX`, locked while it is written: one
that nobody locks was left by a killed process, and goes when the same target is written next. Who finishes last is kept.
"""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path to write to, which replaces `target` when the block ends, flushed to disk; an exception removes it.

    Folders are made. The path keeps the target's suffix; write into the file that is there, rather than put another in its
    place, or it is not locked.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    partial = target.with_name(f"{target.stem}.partial-{secrets.token_hex(8)}{target.suffix}")
    with partial.open("xb") as held:
        try:
            _try_lock(held.fileno())
            yield partial
            with partial.open("rb+") as written:
                os.fsync(written.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _remove_abandoned(target: Path) -> None:
    """Remove what killed writers of `target` left."""
    for path in target.parent.glob(f"{glob.escape(target.stem)}.partial-*{glob.escape(target.suffix)}"):
        # NOTE: an empty one may be about to be locked; one that holds anything is locked, or its writer is no more.
        with suppress(OSError):  # removed meanwhile, or another user's
            if path.stat().st_size:
                with path.open("rb+") as held:
                    if _try_lock(held.fileno()):
                        path.unlink()


def _try_lock(descriptor: int) -> bool:
    """Whether the file is this descriptor's now, until it is closed; never so where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
