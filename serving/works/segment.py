"""The segmentation task: for each class a mask in the film's own pixels, by its name, by points or by boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters.tasks.prompting import Box, Point, Prompt
from adapters.tasks.segmentation import Segmenter
from foundation.errors import InvalidRequest
from serving.messages import Film, Request
from serving.residency import Resident
from serving.works.work import Seen, Tools, Value, View, assessment, film_of


@dataclass(frozen=True, eq=False)
class Segment:
    film: Film
    resident: Resident
    segmenter: Segmenter
    labels: tuple[str, ...]  # the classes asked for
    prompt: Prompt | None
    tools: Tools
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> Segment:
        resident = tools.adapter_of(request, pinned, "Segmenting")
        film, segmenter = film_of(request, tools), resident.opened(Segmenter)
        prompt = read_prompt(request.options)
        if prompt is not None:
            prompt.check(*film.extent)
        return cls(film, resident, segmenter, classes(segmenter, request.options.get("labels")), prompt, tools)

    @property
    def views(self) -> tuple[View, ...]:
        return self.tools.views(self.film, self.resident)

    def finish(self, seen: Seen) -> Value:
        verdict = self.tools.verdict(seen.features[-1], self.film)
        value: Value = {"labels": list(self.labels), **assessment(verdict)}
        if not verdict.assessed:
            return {**value, "presence": [], "thresholds": [], "masks": []}
        prompts = None if self.prompt is None else [self.prompt]
        contract = self.tools.backbone.contract
        (result,) = self.segmenter(seen.features[0], self.tools.pixels(self.film), [self.film.extent], contract, prompts)
        places = [result.labels.index(label) for label in self.labels]
        return {
            **value,
            "presence": result.presence[places].tolist(),
            "thresholds": result.thresholds[places].tolist(),
            "masks": [result.rle(label) for label in self.labels],
        }


def read_prompt(options: Any) -> Prompt | None:
    """The marks of a request; None where there are none, and the whole of each class is meant."""
    points = tuple(Point(float(row), float(column), bool(inside)) for row, column, inside in options.get("points") or ())
    boxes = tuple(Box(*(float(side) for side in box)) for box in options.get("boxes") or ())
    return Prompt(points, boxes) if points or boxes else None


def classes(segmenter: Segmenter, named: Any) -> tuple[str, ...]:
    """The classes a caller names, in that order, whatever their case; all where none is named."""
    known = {label.lower(): label for label in segmenter.card.labels}
    for name in named or ():
        if str(name).lower() not in known:
            raise InvalidRequest(
                f"The adapter {segmenter.card.name!r} has no class {str(name)[:100]!r}; known are {', '.join(known.values())}.",
                param="labels",
            )
    return tuple(dict.fromkeys(known[str(name).lower()] for name in named)) if named else segmenter.card.labels
