"""One film, many tasks: each task is a work of its own, planned and finished by itself; their views run together.

The film is looked at once as it is, and once more through each adapter from the block where that adapter begins. What
goes wrong with one task is said in its place; the others are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foundation.errors import InvalidRequest, VesaliusError
from serving.faults import FAULT, log_fault
from serving.messages import Film, Request
from serving.works.work import Seen, Tools, Value, View, Work, assessment, film_of, require_finite

MAY_BE_ASKED = ("zero_shot", "classify", "segment", "anomaly", "fuse", "embed_image")
Planner = Callable[[Request], Work]


@dataclass(frozen=True, eq=False)
class Analyze:
    film: Film
    parts: tuple[Work | VesaliusError, ...]
    tools: Tools
    trace: str = ""
    resident: None = None

    @classmethod
    def of(cls, request: Request, tools: Tools, planner: Planner) -> Analyze:
        tasks: Sequence[Mapping[str, Any]] = request.options.get("tasks") or ()
        if not tasks:
            raise InvalidRequest("Analyzing needs at least one task.", param="tasks")
        film = film_of(request, tools)
        return cls(film, tuple(_planned(request, task, planner) for task in tasks), tools, request.trace)

    @property
    def works(self) -> tuple[Work, ...]:
        return tuple(part for part in self.parts if not isinstance(part, VesaliusError))

    @property
    def views(self) -> tuple[View, ...]:
        """The film as it is, for the verdict on the whole, then the views of each task."""
        return (View(self.film.pixels), *(view for work in self.works for view in work.views))

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(text for work in self.works for text in work.texts)

    def finish(self, seen: Seen) -> Value:
        verdict = self.tools.verdict(seen.features[0], self.film)
        features, texts = iter(seen.features[1:]), 0
        parts: list[Value] = []
        for part in self.parts:
            if isinstance(part, VesaliusError):
                parts.append({"error": [part.code, part.message]})
                continue
            own = Seen(tuple(next(features) for _ in part.views), seen.texts[texts : texts + len(part.texts)])
            texts += len(part.texts)
            parts.append(self._finished(part, own))
        return {"parts": parts, **assessment(verdict)}

    def _finished(self, work: Work, seen: Seen) -> Value:
        try:
            value = work.finish(seen)
            require_finite(value)
        except VesaliusError as error:
            return {"error": [error.code, error.message]}
        except Exception as error:  # the other tasks must still be answered
            log_fault(error, self.trace)
            return {"error": ["internal_error", FAULT]}
        return {**value, "adapter": work.resident.digest if work.resident is not None else None}


def _planned(request: Request, task: Mapping[str, Any], planner: Planner) -> Work | VesaliusError:
    operation = task["operation"]
    if operation not in MAY_BE_ASKED:
        return InvalidRequest(f"The operation {operation!r} cannot be part of an analysis.", param="tasks")
    single = replace(
        request,
        operation=operation,
        adapter=task.get("adapter"),
        digest=task.get("digest") or "",
        options=task.get("options") or {},
        texts=tuple(task.get("texts") or ()),
    )
    try:
        return planner(single)
    except VesaliusError as error:
        return error
