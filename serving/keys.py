"""API keys: made once and shown once, kept as hashes, good for some scopes, revoked without a restart.

    KeyFile   keys.json, changed by `vesalius keys add | revoke`, one writer at a time, each change whole
    KeyRing   what a running server compares with; it looks at the file again whenever the file has changed

A key is 256 random bits, so one SHA-256 of it is as good on disk as a slow hash would be. Revoked keys stay in the
file: the audit log names keys by id, and an id must always mean the same key.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from foundation.errors import InvalidRequest
from serving.home import require_private

log = logging.getLogger("serving.keys")
Scope = Literal["infer", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
KEYS_FILE = "keys.json"
MIN_KEY_CHARS = 16
DEFAULT_PER_MINUTE = 600
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ApiKey:
    """A key as the server knows it. id: what logs call its holder. per_minute: requests, 0 for no limit. Times: epoch."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    digest: str = field(repr=False)  # SHA-256 of the key, hex
    per_minute: int = 0
    created: int = 0
    revoked: int | None = None

    @classmethod
    def of(cls, key: str, name: str, scopes: Sequence[Scope] = SCOPES, per_minute: int = 0) -> ApiKey:
        """The record of `key`. Raises InvalidRequest for a key that can be guessed, a bad name, scope or rate."""
        if len(key) < MIN_KEY_CHARS:
            raise InvalidRequest(
                f"The API key is shorter than {MIN_KEY_CHARS} characters. Make one with: vesalius keys add NAME",
                param="api_key",
            )
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{name!r} is no name for a key: use letters, digits, '.', '_' and '-'.", param="name")
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise InvalidRequest(f"A key needs scopes out of {', '.join(SCOPES)}; given: {', '.join(scopes)}.", param="scopes")
        if per_minute < 0:
            raise InvalidRequest("per_minute must not be negative; 0 means no limit.", param="per_minute")
        digest = hash_key(key)
        kept = tuple(scope for scope in SCOPES if scope in scopes)
        return cls(digest[:8], name, kept, digest, per_minute, int(time.time()))

    @classmethod
    def given(cls, key: str, name: str, scopes: Sequence[Scope] = SCOPES) -> ApiKey:
        """A key that is written nowhere, known by its name: the operator's own, the page's."""
        return replace(cls.of(key, name, scopes), id=name)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    return f"vsl-{secrets.token_urlsafe(32)}"


class KeyFile:
    """keys.json. Every change reads, writes beside and renames under a lock, so that a reader sees all of it or nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[ApiKey, ...]:
        """All keys, revoked ones too; none where there is no file. Raises InvalidRequest where the file is not ours."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError:
            raise InvalidRequest(f"The key file '{self.path}' cannot be read.") from None
        require_private(self.path)
        try:
            return tuple(_key_from_plain(plain) for plain in json.loads(text)["keys"])
        except (ValueError, KeyError, TypeError):
            raise InvalidRequest(f"The key file '{self.path}' is damaged. Restore it from a copy, or make new keys.") from None

    def add(self, name: str, scopes: Sequence[Scope], per_minute: int = DEFAULT_PER_MINUTE) -> tuple[ApiKey, str]:
        """A new key and its secret, which is nowhere else. Raises InvalidRequest where an active key has the name."""
        secret = new_key()
        made = ApiKey.of(secret, name, scopes, per_minute)
        with self._changing() as keys:
            if any(key.name == name and key.revoked is None for key in keys):
                raise InvalidRequest(f"There is a key called '{name}'. Revoke it first, or choose another name.", param="name")
            keys.append(made)
        return made, secret

    def revoke(self, wanted: str) -> ApiKey:
        """Revoke the active key of this name or id. A running server refuses it from its next request on."""
        with self._changing() as keys:
            for place, key in enumerate(keys):
                if wanted in (key.name, key.id) and key.revoked is None:
                    keys[place] = replace(key, revoked=int(time.time()))
                    return keys[place]
            known = ", ".join(key.name for key in keys if key.revoked is None) or "none"
            raise InvalidRequest(f"There is no active key '{wanted}'; active are: {known}.", param="name")

    @contextmanager
    def _changing(self) -> Iterator[list[ApiKey]]:
        """The keys, written back when the block ends without an error."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            raise InvalidRequest(f"The key file '{self.path}' cannot be written.") from None
        with os.fdopen(lock):
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = list(self.read())
            yield keys
            self._write(keys)

    def _write(self, keys: Sequence[ApiKey]) -> None:
        draft = self.path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        text = json.dumps({"version": 1, "keys": [asdict(key) for key in keys]}, indent=1)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        draft.replace(self.path)


def _key_from_plain(plain: dict[str, Any]) -> ApiKey:
    key = ApiKey(**{**plain, "scopes": tuple(plain["scopes"])})
    if len(key.digest) != 64 or not set(key.scopes) <= set(SCOPES):
        raise ValueError
    return key


class KeyRing:
    """The keys of a running server: those of a file, and those given at its start, which are written nowhere.

    given: the operator's own and the page's. guards: False lets `is_open` be true while the file holds no key.
    """

    def __init__(self, file: KeyFile | None = None, given: Sequence[ApiKey] = (), *, guards: bool = False) -> None:
        self._file = file
        self._given = tuple(given)
        self._guards = guards
        self._seen: object = None
        self._kept: tuple[ApiKey, ...] = ()
        if file is not None:
            self._kept = file.read()
            self._seen = self._stamp()

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for. Never again once a key was in the file, even if it was the last and is revoked."""
        self._look()
        return not self._guards

    @property
    def active(self) -> int:
        """How many keys would be let in."""
        return sum(key.revoked is None for key in (*self._given, *self._kept))

    def find(self, key: str) -> ApiKey | None:
        """The active record of `key`. Every record is compared, each in constant time, whichever matches."""
        self._look()
        digest = hash_key(key)
        found: ApiKey | None = None
        for one in (*self._given, *self._kept):
            if hmac.compare_digest(one.digest, digest) and one.revoked is None:
                found = one
        return found

    def _look(self) -> None:
        """Take in a changed file. One that cannot be read any more lets nobody in: who was revoked is not known."""
        if self._file is not None and (stamp := self._stamp()) != self._seen:
            self._seen = stamp
            try:
                self._kept = self._file.read()
            except InvalidRequest:
                log.error("the key file cannot be read any more; its keys are refused until it can")
                self._kept = ()
                self._guards = True
        self._guards = self._guards or bool(self._kept)

    def _stamp(self) -> object:
        assert self._file is not None
        try:
            stat = self._file.path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size, stat.st_mode
