"""Loading and unloading an adapter in the running engine. It stands in the queue like any request, so that who asked
before is answered before, by what was there then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.tasks.chat import TASK as CHAT
from serving.messages import Request
from serving.residency import Resident
from serving.works.work import Seen, Tools, Value, View


@dataclass(frozen=True, eq=False)
class Load:
    told: Mapping[str, Any]
    resident: Resident | None = None
    views: tuple[View, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> Load:
        name = request.adapter or ""
        stored = tools.residency.allow(name, str(request.options.get("digest") or ""))
        if stored.card.task == CHAT and tools.chats is not None:
            chats = tools.chats.take(name, pinned)
            pinned.add(chats.digest)
            return cls({"name": name, "digest": chats.digest, "task": CHAT, "slot": chats.slot, "deviation": 0.0})
        resident = tools.residency.take(name, pinned, falls_back=False)
        pinned.add(resident.digest)
        told = {"name": name, "digest": resident.digest, "task": resident.card.task}
        return cls({**told, "slot": resident.slot, "deviation": resident.deviation}, resident)

    def finish(self, seen: Seen) -> Value:
        return dict(self.told)


@dataclass(frozen=True, eq=False)
class Unload:
    name: str
    was_resident: bool
    resident: None = None
    views: tuple[View, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> Unload:
        name = request.adapter or ""
        return cls(name, tools.residency.unload(name, pinned))

    def finish(self, seen: Seen) -> Value:
        return {"name": self.name, "was_resident": self.was_resident}
