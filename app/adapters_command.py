"""`vesalius adapters`: list, show, verify, add, remove or compact the adapters of the store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from app.show import Show
from foundation.errors import InvalidRequest


def add_adapters_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("list", "show", "verify", "add", "remove", "compact"))
    command.add_argument("name", nargs="?")
    command.add_argument("--adapters", type=Path, help="your own adapters' folder")


def run_adapters(chosen: argparse.Namespace, show: Show) -> None:
    from adapters.store import AdapterStore

    store = AdapterStore.default(chosen.adapters)
    if chosen.action != "list" and chosen.name is None:
        raise InvalidRequest(f"`adapters {chosen.action}` needs a name.", param="name")
    if chosen.action == "remove":
        store.remove(chosen.name)
        show({"removed": chosen.name}, f"Removed {chosen.name}.")
        return
    if chosen.action == "compact":
        from adapters.half import compact

        compact(store.get(chosen.name).folder)
    found = {
        "list": lambda: list(store.list()),
        "show": lambda: [store.get(chosen.name)],
        "verify": lambda: [store.verify(chosen.name)],
        "compact": lambda: [store.verify(chosen.name)],
        "add": lambda: [store.add(chosen.name)],
    }[chosen.action]()
    plain: list[dict[str, Any]] = [
        {"name": one.name, "digest": one.digest, "bundled": one.is_bundled, "labels": list(one.card.labels)} for one in found
    ]
    lines = [f"{one['name']:24} {str(one['digest'])[:12]}  {', '.join(map(str, one['labels']))}" for one in plain]
    if chosen.action == "list":
        refused = store.refused()
        plain += [{"name": one.name, "refused": one.reason} for one in refused]
        lines += [f"{one.name:24} refused: {one.reason}" for one in refused]
    show(plain, "\n".join(lines) or "No adapters.")
