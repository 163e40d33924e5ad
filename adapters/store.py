"""AdapterStore: the adapters on this machine, bundled ones first, then the user's folder. Knows no torch.

    roots = (adapters/library, ~/.local/share/vesalius/adapters)      the last root is the one that is written to

An adapter enters by `add`, which verifies, copies beside its place and renames: a reader sees all of it or
nothing. Loading the tensors is `files.py`; keeping adapters resident is `bank.py`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.card import CARD, AdapterCard, check_name, read_card_with_digest, verify_folder
from foundation.errors import AdapterError, AdapterNotFound, AdapterRefused, InvalidRequest

LIBRARY = Path(__file__).parent / "library"


@dataclass(frozen=True)
class StoredAdapter:
    """One adapter as the store knows it; `digest` changes with any byte of its files. created: Unix time of its card."""

    name: str
    folder: Path
    card: AdapterCard
    digest: str
    is_bundled: bool
    created: int = 0


@dataclass(frozen=True)
class RefusedAdapter:
    """A folder that calls itself an adapter and cannot be opened, with the sentence that says why."""

    name: str
    folder: Path
    reason: str


_Sign = tuple[int, int, int, int]


def _sign_of(path: str) -> _Sign | None:
    """What changes when a file is written or another is put in its place; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class AdapterStore:
    """Adapters by name over several roots; where two roots hold the same name, the last, which is the user's, wins."""

    def __init__(self, *roots: Path | str) -> None:
        self.roots = tuple(Path(root) for root in roots) or (LIBRARY,)
        self._known: dict[str, tuple[_Sign, StoredAdapter]] = {}  # by folder; all by plain strings: a store may hold thousands

    @classmethod
    def default(cls, user_root: Path | str | None = None) -> AdapterStore:
        """The bundled library and the user's folder ($VESALIUS_ADAPTERS or ~/.local/share/vesalius/adapters)."""
        chosen = user_root or os.environ.get("VESALIUS_ADAPTERS") or "~/.local/share/vesalius/adapters"
        return cls(LIBRARY, Path(chosen).expanduser())

    def list(self) -> tuple[StoredAdapter, ...]:
        """All adapters with a readable card, by name; one with a broken card never hides the others (see `refused`)."""
        return tuple(held for held in self._all() if isinstance(held, StoredAdapter))

    def refused(self) -> tuple[RefusedAdapter, ...]:
        """The adapters that `list` leaves out, by name, each with the reason."""
        return tuple(held for held in self._all() if isinstance(held, RefusedAdapter))

    def get(self, name: str) -> StoredAdapter:
        root = self._root_of(check_name(name))
        if root is None:
            raise self._unknown(name)
        return self._read(root, name)

    def verify(self, name: str) -> StoredAdapter:
        """The adapter, after all its files were compared with the hashes of its card."""
        stored = self.get(name)
        verify_folder(stored.folder)
        return stored

    def add(self, source: Path | str, name: str | None = None, *, replace: bool = False) -> StoredAdapter:
        """Copy an adapter folder into the last root, under its card's name or `name`, after verifying it."""
        source = Path(source)
        card = verify_folder(source)
        name = check_name(name or card.name)
        root = self._writable_root()
        holder = self._root_of(name)
        if holder is not None and (holder != root or not replace):
            raise InvalidRequest(f"An adapter called {name!r} is here already; remove it or choose a name.", param="name")
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".adding-", dir=root) as place:
            fresh, old = Path(place) / "fresh", Path(place) / "old"
            _copy_files(source, fresh, (*card.files, CARD))
            verify_folder(fresh)
            if holder is not None:
                os.replace(root / name, old)
            os.replace(fresh, root / name)
        return self.get(name)

    def remove(self, name: str) -> None:
        """Delete an adapter, readable or not, from the last root; bundled ones stay."""
        root = self._writable_root()
        holder = self._root_of(check_name(name))
        if holder is None:
            raise self._unknown(name)
        if holder != root:
            raise InvalidRequest(f"The adapter {name!r} is bundled and cannot be removed.", param="name")
        with tempfile.TemporaryDirectory(prefix=".removing-", dir=root) as place:
            os.replace(root / name, Path(place) / name)

    def _read(self, root: Path, name: str) -> StoredAdapter:
        """What the card says; a card that is the same file as when it was last looked at is not read again."""
        place = f"{root}/{name}"
        sign = _sign_of(f"{place}/{CARD}")
        known = self._known.get(place)
        if known is not None and sign is not None and known[0] == sign:
            return known[1]
        folder = root / name
        created = sign[2] // 10**9 if sign is not None else 0
        is_bundled = root.resolve() == LIBRARY.resolve()
        card, digest = read_card_with_digest(folder)
        stored = StoredAdapter(name, folder, card, digest, is_bundled, created)
        if sign is not None and sign == _sign_of(f"{place}/{CARD}"):
            self._known[place] = (sign, stored)
        return stored

    def _all(self) -> Iterator[StoredAdapter | RefusedAdapter]:
        for name in sorted(set(self._names())):
            try:
                yield self.get(name)
            except AdapterError as error:
                yield RefusedAdapter(name, (self._root_of(name) or self.roots[-1]) / name, error.message)

    def _writable_root(self) -> Path:
        root = self.roots[-1]
        if root.resolve() == LIBRARY.resolve():
            raise InvalidRequest("This store holds the bundled adapters only; give it a folder of your own to write to.")
        return root

    def _unknown(self, name: str) -> AdapterNotFound:
        known = ", ".join(sorted(set(self._names()))) or "none"
        return AdapterNotFound(f"There is no adapter called {name!r}; known are: {known}.", param="adapter")

    def _root_of(self, name: str) -> Path | None:
        return next((root for root in reversed(self.roots) if os.path.isfile(f"{root}/{name}/{CARD}")), None)

    def _names(self) -> Iterator[str]:
        for root in self.roots:
            try:
                held = os.listdir(root)
            except OSError:
                continue
            yield from (name for name in held if _is_name(name) and os.path.exists(f"{root}/{name}/{CARD}"))


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name))
    except InvalidRequest:
        return False


def _copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    target.mkdir()
    for name in names:
        if (source / name).is_symlink():
            raise AdapterRefused(f"{name} is a link; an adapter holds plain files only.")
        shutil.copyfile(source / name, target / name)
