"""The segmentation task: for each class a mask in the film's own pixels, by its name, by points or by boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters.tasks.prompting import Box, Point, Prompt
from adapters.tasks.segmentation import SegmentationResult, Segmenter
from foundation.errors import InvalidRequest
from serving.messages import Film, Request
from serving.residency import Resident
from serving.works.work import Seen, Tools, Value, View, assessment, film_of


@dataclass(frozen=True, eq=False)
class Segment:
    film: Film
    resident: Resident
    segmenter: Segmenter
    labels: tuple[str, ...]  # what was asked for, in order: classes, unions of them, or free words
    words: tuple[str, ...]  # those of them that are free words
    prompt: Prompt | None
    tools: Tools

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> Segment:
        resident = tools.adapter_of(request, pinned, "Segmenting")
        film, segmenter = film_of(request, tools), resident.opened(Segmenter)
        prompt = read_prompt(request.options)
        if prompt is not None:
            prompt.check(*film.extent)
        labels, words = read_labels(segmenter, request.options.get("labels"))
        if words and prompt is not None:
            known = ", ".join((*segmenter.card.labels, *segmenter.unions))
            raise InvalidRequest(
                f"Points and boxes go with classes; {words[0][:100]!r} is none of this adapter's. Known are {known}.",
                param="labels",
            )
        return cls(film, resident, segmenter, labels, words, prompt, tools)

    @property
    def texts(self) -> tuple[str, ...]:
        return self.words

    @property
    def views(self) -> tuple[View, ...]:
        return self.tools.views(self.film, self.resident)

    def finish(self, seen: Seen) -> Value:
        verdict = self.tools.verdict(seen.features[-1], self.film)
        value: Value = {"labels": list(self.labels), "words": list(self.words), **assessment(verdict)}
        if not verdict.assessed:
            return {**value, "presence": [], "thresholds": [], "masks": []}
        found = self._found(seen)
        presence = [_presence(found[label], label) for label in self.labels]
        return {
            **value,
            "presence": [chance for chance, _ in presence],
            "thresholds": [threshold for _, threshold in presence],
            "masks": [found[label].rle(label) for label in self.labels],
        }

    def _found(self, seen: Seen) -> dict[str, SegmentationResult]:
        """For each label the result that speaks of it: the classes' own, or that of the free words."""
        prompts = None if self.prompt is None else [self.prompt]
        looked = (seen.features[0], self.tools.pixels(self.film), [self.film.extent], self.tools.backbone.contract)
        found: dict[str, SegmentationResult] = {}
        if len(self.words) < len(self.labels):
            (result,) = self.segmenter(*looked, prompts, [label for label in self.labels if label not in self.words])
            found |= dict.fromkeys(self.labels, result)
        if self.words:
            (result,) = self.segmenter.ask(*looked, dict(zip(self.words, seen.texts, strict=True)))
            found |= dict.fromkeys(self.words, result)
        return found


def read_prompt(options: Any) -> Prompt | None:
    """The marks of a request; None where there are none, and the whole of each class is meant."""
    points = tuple(Point(float(row), float(column), bool(inside)) for row, column, inside in options.get("points") or ())
    boxes = tuple(Box(*(float(side) for side in box)) for box in options.get("boxes") or ())
    return Prompt(points, boxes) if points or boxes else None


def read_labels(segmenter: Segmenter, named: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a caller names, in that order, and which of it are free words; all classes where nothing is named."""
    known = {label.lower(): label for label in (*segmenter.card.labels, *segmenter.unions)}
    labels = tuple(dict.fromkeys(known.get(str(name).lower(), str(name)) for name in named or segmenter.card.labels))
    return labels, tuple(label for label in labels if label.lower() not in known)


def _presence(result: SegmentationResult, label: str) -> tuple[float, float]:
    """The probability of a class, with its threshold; of a union those of its surest class."""
    places = [result.labels.index(part) for part in result.unions.get(label, (label,))]
    surest = max(places, key=lambda place: float(result.presence[place] - result.thresholds[place]))
    return float(result.presence[surest]), float(result.thresholds[surest])
