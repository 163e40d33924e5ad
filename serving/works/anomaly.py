"""The anomaly task: how strange a film is among normal ones, and where."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.tasks.anomaly import Detector
from serving.messages import Film, Request
from serving.residency import Resident
from serving.works.work import Seen, Tools, Value, View, assessment, film_of


@dataclass(frozen=True, eq=False)
class Anomaly:
    film: Film
    resident: Resident
    detector: Detector
    wants_heat: bool
    tools: Tools
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> Anomaly:
        resident = tools.adapter_of(request, pinned, "Looking for anomalies")
        wants_heat = bool(request.options.get("heat", True))
        return cls(film_of(request, tools), resident, resident.opened(Detector), wants_heat, tools)

    @property
    def views(self) -> tuple[View, ...]:
        return self.tools.views(self.film, self.resident)

    def finish(self, seen: Seen) -> Value:
        verdict = self.tools.verdict(seen.features[-1], self.film)
        if not verdict.assessed:
            nothing: Value = {"score": None, "p_value": None, "branches": {}, "normals": 0, "heat": None}
            return {**nothing, **assessment(verdict)}
        backbone = self.tools.backbone
        patches = backbone.patch_embeddings(seen.features[0])
        (result,) = self.detector.judge(seen.features[0], patches)
        return {
            "score": result.score,
            "p_value": result.p_value,
            "branches": dict(result.branches),
            "normals": result.normals,
            "heat": result.heat.tolist() if self.wants_heat else None,  # laid over the film where there is time for it
            **assessment(verdict),
        }
