"""Loading and unloading an adapter in the running engine. It stands in the queue like any request, so that who asked
before is answered before, by what was there then."""

from __future__ import annotations

from dataclasses import dataclass

from serving.messages import Request
from serving.residency import Resident
from serving.works.work import Seen, Tools, Value, View


@dataclass(frozen=True, eq=False)
class Load:
    resident: Resident
    views: tuple[View, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> Load:
        resident = tools.residency.load(request.adapter or "", pinned, str(request.options.get("digest") or ""))
        pinned.add(resident.digest)
        return cls(resident)

    def finish(self, seen: Seen) -> Value:
        resident = self.resident
        return {
            "name": resident.name,
            "digest": resident.digest,
            "task": resident.card.task,
            "slot": resident.slot,
            "deviation": resident.deviation,
        }


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
