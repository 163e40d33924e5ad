"""The report of an evaluation: `report.json` for programs, `report.md` with plots for people.

    Measure   one number with its interval: what (auroc), of what (effusion), among whom (view=AP), by whom (hog)
    Section   measures laid out as one table, with a sentence on how to read it; or a table of words; and plots
    Report    sections, and what they rest on: command, data, checkpoint, adapter, hardware, seed

Nothing here knows how a number came to be: that is `evaluating/evaluate.py`. Plots are drawn by `plots.py`.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.measuring.metrics import Estimate

DISCLAIMER = "Research use only; not a medical device."


@dataclass(frozen=True)
class Measure:
    """name: auroc, average_precision, ...; label: a finding, or "mean"; group: "all" or "field=value"."""

    name: str
    estimate: Estimate
    by: str
    label: str = ""
    group: str = "all"
    films: int | None = None
    positives: int | None = None
    source: str = ""

    def as_json(self) -> dict[str, Any]:
        about = {"name": self.name, "label": self.label, "group": self.group, "by": self.by, "source": self.source}
        return {**about, "films": self.films, "positives": self.positives, **_bounds(self.estimate)}


@dataclass(frozen=True)
class Table:
    """Words in rows and columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_markdown(self) -> str:
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


@dataclass(frozen=True)
class Plot:
    """A picture beside the report: file name, what it shows, PNG bytes."""

    name: str
    title: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Section:
    """`rows` and `columns` name the fields of Measure that a table is laid out by; without measures only `tables`.

    is_laid_out: False where `tables` say the measures better than such a table would; report.json has them either way.
    """

    title: str
    note: str = ""
    measures: tuple[Measure, ...] = ()
    rows: tuple[str, ...] = ("label",)
    columns: tuple[str, ...] = ("by", "name")
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    is_laid_out: bool = True

    def layout(self) -> Table | None:
        """The measures as one table: first seen, first shown; counts stand in the leading columns."""
        if not self.measures or not self.is_laid_out:
            return None
        cells: dict[tuple[str, ...], dict[str, Measure]] = {}
        heads: dict[str, None] = {}
        for measure in self.measures:
            head = " ".join(filter(None, (_title(getattr(measure, name)) for name in self.columns)))
            heads[head] = None
            cells.setdefault(tuple(str(getattr(measure, name)) for name in self.rows), {})[head] = measure
        counted = any(measure.films is not None for measure in self.measures)
        with_positives = any(measure.positives is not None for measure in self.measures)
        lead = (*self.rows, *(("films",) if counted else ()), *(("positives",) if with_positives else ()))
        lines = []
        for key, held in cells.items():
            first = next(iter(held.values()))
            counts = [_count(first.films)] * counted + [_count(first.positives)] * with_positives
            lines.append((*key, *counts, *(str(held[h].estimate) if h in held else "" for h in heads)))
        return Table((*lead, *heads), tuple(lines))


@dataclass(frozen=True)
class Report:
    """`about` is what the numbers rest on, in the order shown; its values are words or numbers."""

    title: str
    about: Mapping[str, Any]
    sections: tuple[Section, ...]

    @property
    def measures(self) -> tuple[Measure, ...]:
        return tuple(measure for section in self.sections for measure in section.measures)

    def find(self, name: str, label: str = "", *, by: str | None = None, group: str = "all") -> Estimate:
        """The first measure of this name; KeyError where there is none."""
        for measure in self.measures:
            if (measure.name, measure.label, measure.group) == (name, label, group) and by in (None, measure.by):
                return measure.estimate
        raise KeyError((name, label, by, group))

    def as_json(self) -> str:
        sections = [
            {
                "title": section.title,
                "note": section.note,
                "measures": [measure.as_json() for measure in section.measures],
                "tables": [{"columns": table.columns, "rows": table.rows} for table in section.tables],
                "plots": [plot.name for plot in section.plots],
            }
            for section in self.sections
        ]
        content = {"format": 1, "title": self.title, "about": dict(self.about), "sections": sections}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"

    def as_markdown(self) -> str:
        parts = [f"# {self.title}", DISCLAIMER, _about(self.about)]
        for section in self.sections:
            parts += [f"## {section.title}", section.note]
            laid_out = section.layout()
            parts += [table.as_markdown() for table in (laid_out, *section.tables) if table is not None]
            parts += [f"![{plot.title}]({plot.name})" for plot in section.plots]
        return "\n\n".join(part for part in parts if part) + "\n"


def write_report(report: Report, folder: str | Path) -> Path:
    """Write `report.json`, `report.md` and the plots; returns the path of `report.md`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for plot in section.plots:
            (folder / plot.name).write_bytes(plot.png)
    (folder / "report.json").write_text(report.as_json(), encoding="utf-8")
    (folder / "report.md").write_text(report.as_markdown(), encoding="utf-8")
    return folder / "report.md"


def hardware() -> str:
    """One line: processor, cores, accelerator if there is one, versions. No host name."""
    import torch

    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads{device}; {versions}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _about(about: Mapping[str, Any]) -> str:
    return "\n".join(f"- **{name}**: {_value(value)}" for name, value in about.items() if value not in (None, "", [], ()))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_value(inner)}" for name, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(_value(inner) for inner in value)
    return str(value)


def _bounds(estimate: Estimate) -> dict[str, float | None]:
    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "level": estimate.level}
    return {name: None if math.isnan(value) else round(value, 6) for name, value in values.items()}


def _title(word: str) -> str:
    return {"auroc": "AUROC", "average_precision": "AP"}.get(word, word.replace("_", " "))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _count(number: int | None) -> str:
    return "" if number is None else str(number)
