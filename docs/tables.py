"""Fills the figures of README.md and MODEL_CARD.md from the reports beside this file: `python docs/tables.py`.

A figure stands between `<!-- figure: NAME -->` and `<!-- end -->`; NAME is a function below. The reports are what
`vesalius evaluate` wrote, one folder a subject under `docs/results/`. A test holds the pages to what this writes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGES = ("README.md", "MODEL_CARD.md")
BLOCK = re.compile(r"(<!-- figure: (?P<name>[a-z_]+) -->\n).*?(<!-- end -->)", re.S)
BY = {"hog": "HOG + PCA + logistic regression", "cnn": "small CNN from scratch", "zero-shot": "Vesalius zero-shot"}


@dataclass(frozen=True)
class Result:
    """One report.json."""

    content: dict[str, Any]

    @classmethod
    def read(cls, subject: str) -> Result:
        return cls(json.loads((RESULTS / subject / "report.json").read_text(encoding="utf-8")))

    def cell(self, name: str, label: str, by: str, source: str = "", group: str = "all") -> str:
        """ "0.71 (0.68 to 0.74)", or a dash where it was not measured."""
        for section in self.content["sections"]:
            for one in section["measures"]:
                same = (one["name"], one["label"], one["by"], one["group"]) == (name, label, by, group)
                if same and (not source or one["source"] == source) and one["value"] is not None:
                    if one["low"] is None:
                        return f"{one['value']:.2f}"
                    return f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
        return "-"

    def labels(self, name: str, by: str, source: str) -> list[str]:
        found = [
            one["label"]
            for section in self.content["sections"]
            for one in section["measures"]
            if (one["name"], one["by"], one["group"], one["source"]) == (name, by, "all", source)
        ]
        return list(dict.fromkeys(found))

    def footing(self) -> str:
        about = self.content["about"]
        data = about["data"]
        return (
            f"`{about['command']}`: {data['films']} films of {data['patients']} patients, split {data['split']}; "
            f"{about['bootstrap']}; {about['hardware']}."
        )


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def findings() -> str:
    """AUROC on the NIH films: the adapter, zero-shot, and the two baselines."""
    adapter, zero = Result.read("cxr-findings"), Result.read("zero-shot")
    columns = ["AUROC, test", "`cxr-findings`", "zero-shot", BY["hog"], BY["cnn"]]
    rows = []
    for label in adapter.labels("auroc", "cxr-findings", "nih_cxr14"):
        rows.append(
            [
                label,
                adapter.cell("auroc", label, "cxr-findings", "nih_cxr14"),
                zero.cell("auroc", label, "zero-shot", "nih_cxr14"),
                *(adapter.cell("auroc", label, by, "nih_cxr14") for by in ("hog", "cnn")),
            ]
        )
    return f"{table(columns, rows)}\n\n{adapter.footing()}"


FIGURES: dict[str, Callable[[], str]] = {"findings": findings}


def fill(page: str) -> str:
    """The page with every figure as the reports have it. Raises KeyError for a figure that nobody makes."""
    return BLOCK.sub(lambda found: f"{found[1]}{FIGURES[found['name']]()}\n{found[3]}", page)


def main() -> int:
    for name in PAGES:
        path = ROOT / name
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
