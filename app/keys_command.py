"""`vesalius keys`: make, list and revoke API keys. A running server follows at its next request."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from app.show import Show
from foundation.errors import InvalidRequest

if TYPE_CHECKING:
    from serving.keys import ApiKey


def add_keys_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("add", "list", "revoke"))
    command.add_argument("name", nargs="?", help="whose key it is; to revoke, its name or id")
    command.add_argument("--scope", action="append", dest="scopes", choices=("infer", "admin"), help="default: infer")
    command.add_argument("--per-minute", type=int, default=600, help="requests a minute, 0 for no limit (default: 600)")
    command.add_argument("--home", help="the server's folder (default: $VESALIUS_HOME or ~/.local/share/vesalius)")


def run_keys(chosen: argparse.Namespace, show: Show) -> None:
    from serving.home import home_folder
    from serving.keys import KEYS_FILE, KeyFile

    file = KeyFile(home_folder(chosen.home) / KEYS_FILE)
    if chosen.action == "list":
        keys = file.read()
        show([_plain(key) for key in keys], "\n".join(map(_line, keys)) or "No keys.")
        return
    if chosen.name is None:
        raise InvalidRequest(f"`keys {chosen.action}` needs a name.", param="name")
    if chosen.action == "revoke":
        key = file.revoke(chosen.name)
        show(_plain(key), f"Revoked {key.name} ({key.id}).")
        return
    key, secret = file.add(chosen.name, tuple(chosen.scopes or ("infer",)), chosen.per_minute)
    text = f"{secret}\n\nThis is the key of {key.name} ({key.id}; {', '.join(key.scopes)}). It is shown this once: keep it now."
    show({**_plain(key), "key": secret}, text)


def _plain(key: ApiKey) -> dict[str, Any]:
    """Everything but the hash."""
    return {
        "id": key.id,
        "name": key.name,
        "scopes": list(key.scopes),
        "per_minute": key.per_minute,
        "created": key.created,
        "revoked": key.revoked,
    }


def _line(key: ApiKey) -> str:
    state = "active" if key.revoked is None else f"revoked {_day(key.revoked)}"
    rate = f"{key.per_minute or '-':>6}/min"
    return f"{key.id}  {key.name:20} {','.join(key.scopes):12} {rate}  made {_day(key.created)}  {state}"


def _day(epoch_s: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(epoch_s))
