"""A reading: the last answer's evidence, tied to the very view of the film it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.schemas.chat import ChatExtras, HeatMap


@dataclass(frozen=True)
class Reading:
    """view: `OpenFilm.view` of what was asked about; another slice or window is another view."""

    view: tuple[Any, ...]
    extras: ChatExtras

    @property
    def maps(self) -> Sequence[HeatMap]:
        return (self.extras.evidence.maps if self.extras.evidence else None) or ()

    def map_of(self, label: str) -> HeatMap | None:
        return next((one for one in self.maps if one.label == label), None)

    def map_choices(self) -> list[tuple[str, str]]:
        """(what is shown, label), the most probable finding first; [] without maps."""
        evidence = self.extras.evidence
        if evidence is None:
            return []
        found = sorted(evidence.findings, key=lambda one: -one.probability)
        return [(f"{one.label} ({one.probability:.2f})", one.label) for one in found if self.map_of(one.label)]

    def first_map(self) -> str:
        """The finding asked about where it is present, else "": a map of what is not there would mislead by itself."""
        evidence = self.extras.evidence
        if evidence is None or evidence.heatmap is None:
            return ""
        asked = evidence.heatmap.label
        found = (one for one in evidence.findings if one.label == asked and one.threshold is not None)
        return next((one.label for one in found if one.probability >= (one.threshold or 0.0)), "")
