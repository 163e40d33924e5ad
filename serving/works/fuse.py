"""The fusion task: one patient's outcome from films, a note and fields of a table, any of them absent.

A film outside what the model knows is not left out in silence: the whole is not assessed, and the film's kind is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from adapters.tasks.fusion import FusionPredictor
from adapters.tasks.outcomes import CleanNote, remove_outcomes
from adapters.tasks.tabular import Cell
from foundation.errors import InvalidRequest
from foundation.gate import GateVerdict
from serving.messages import Film, Request
from serving.residency import Resident
from serving.works.work import Seen, Tools, Value, View, assessment, check_film


@dataclass(frozen=True, eq=False)
class Fuse:
    films: tuple[Film, ...]
    note: CleanNote | None
    tabular: Mapping[str, Cell]
    resident: Resident
    predictor: FusionPredictor
    tools: Tools
    with_contributions: bool = False

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> Fuse:
        resident = tools.adapter_of(request, pinned, "Fusing")
        predictor = resident.opened(FusionPredictor)
        for film in request.films:
            check_film(film, tools)
        note = " ".join(request.texts).strip()
        if note and not predictor.reads_notes:
            raise InvalidRequest(f"The adapter {request.adapter!r} reads no notes; leave the text out.", param="text")
        tabular = dict(request.options.get("tabular") or {})
        predictor.check(tabular)
        cleaned, with_contributions = remove_outcomes(note) if note else None, bool(request.options.get("contributions"))
        return cls(request.films, cleaned, tabular, resident, predictor, tools, with_contributions)

    @property
    def views(self) -> tuple[View, ...]:
        return tuple(view for film in self.films for view in self.tools.views(film, self.resident))

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.note.text,) if self.note is not None and self.note.text else ()

    def finish(self, seen: Seen) -> Value:
        ways = 2 if self.tools.gate else 1
        through = seen.features[::ways]
        verdicts = [
            self.tools.verdict(base, film) for base, film in zip(seen.features[ways - 1 :: ways], self.films, strict=True)
        ]
        refused = next((verdict for verdict in verdicts if not verdict.assessed), GateVerdict(True, "", 0.0))
        value: Value = {"films": [assessment(verdict) for verdict in verdicts], **assessment(refused)}
        if not refused.assessed:
            return {**value, "result": None}
        text = seen.texts[0] if self.texts else None
        try:
            result = self.predictor(through, text, self.tabular, with_contributions=self.with_contributions)
        except ArithmeticError:  # they did not add up: the answer stands without them
            result = self.predictor(through, text, self.tabular)
        return {**value, "result": {**_plain(asdict(result)), "removed": len(self.note.removed) if self.note else 0}}


def _plain(value: Value) -> Value:
    """Tuples as lists, all the way down: what travels."""
    return {name: _list(one) for name, one in value.items()}


def _list(value: object) -> object:
    if isinstance(value, tuple | list):
        return [_list(one) for one in value]
    return {name: _list(one) for name, one in value.items()} if isinstance(value, dict) else value
