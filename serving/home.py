"""Where a server keeps what outlives it: keys, the audit log, the secret that study hashes are made with.

    $VESALIUS_HOME or ~/.local/share/vesalius
        keys.json        serving/keys.py      hashes of API keys
        audit.jsonl      serving/audit.py     who asked what, and how it ended
        audit.head       serving/audit.py     how long that log is
        secret.key       read_secret          32 random bytes, made on first use

Only its owner may read or write any of it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from foundation.errors import InvalidRequest

HOME_VARIABLE = "VESALIUS_HOME"
SECRET_BYTES = 32
_OTHERS_MAY = 0o077


def home_folder(chosen: Path | str | None = None) -> Path:
    """The folder, whether or not it exists yet."""
    return Path(chosen or os.environ.get(HOME_VARIABLE) or "~/.local/share/vesalius").expanduser()


def make_home(chosen: Path | str | None = None) -> Path:
    """The folder, made if need be. Raises InvalidRequest where it cannot be."""
    folder = home_folder(chosen)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        raise InvalidRequest(
            f"The folder '{folder}' cannot be made. Set {HOME_VARIABLE} to one that can.", param="home"
        ) from None
    return folder


def read_secret(path: Path) -> bytes:
    """The secret at `path`, made on first use; two processes that make it at once agree on one.

    Raises InvalidRequest where the file is not of the right length, or where others may read it.
    """
    if not path.exists():
        _make_secret(path)
    require_private(path)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise InvalidRequest(f"'{path}' should hold {SECRET_BYTES} bytes and holds {len(secret)}. Restore it from a copy.")
    return secret


def _make_secret(path: Path) -> None:
    """Written beside its place and linked there: whoever comes second keeps the first one's."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError:
        raise InvalidRequest(f"'{path}' cannot be written. Set {HOME_VARIABLE} to a folder that can.", param="home") from None


def require_private(path: Path) -> None:
    """Refuse a file that other users of this machine may read or change."""
    if path.stat().st_mode & _OTHERS_MAY:
        raise InvalidRequest(f"Other users may read or change '{path}'. Run: chmod 600 {path}")
