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
HEADLINES = (
    "auroc", "zero-shot auroc mean", "boosting, zeros auroc", "boosting, NaN auroc", "no-harm gap", "dice", "hd95",
    "surface dice", "auroc text", "auroc memory", "auroc reconstruction", "auroc trained", "closed accuracy",
    "closed accuracy, majority answer", "closed accuracy, blank film", "likelier of yes and no",
    "likelier of yes and no, blank film", "margin over the majority answer", "margin over its own blank film",
)  # fmt: skip
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
        for one in self.measures:
            same = (one["name"], one["label"], one["by"], one["group"]) == (name, label, by, group)
            if same and (not source or one["source"] == source) and one["value"] is not None:
                if one["low"] is None:
                    return f"{one['value']:.2f}"
                return f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
        return "-"

    @property
    def measures(self) -> list[dict[str, Any]]:
        return [one for section in self.content["sections"] for one in section["measures"]]

    def names(self, source: str) -> list[str]:
        """Names of measures of a source, first seen first."""
        return list(dict.fromkeys(one["name"] for one in self.measures if one["source"] == source))

    def bys(self, name: str, source: str) -> list[str]:
        return list(dict.fromkeys(one["by"] for one in self.measures if (one["name"], one["source"]) == (name, source)))

    def labels(self, name: str, by: str, source: str) -> list[str]:
        wanted = (name, by, "all", source)
        found = [one["label"] for one in self.measures if (one["name"], one["by"], one["group"], one["source"]) == wanted]
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


def summary() -> str:
    """The README's few lines: means and headlines, each beside the baselines."""
    adapter, zero = Result.read("cxr-findings"), Result.read("zero-shot")
    mean, nih = "mean of findings", "nih_cxr14"
    rows = [
        ["13 findings, mean AUROC: `cxr-findings`", adapter.cell("auroc", mean, "cxr-findings", nih)],
        ["13 findings, mean AUROC: zero-shot", zero.cell("auroc", mean, "zero-shot", nih)],
        [f"13 findings, mean AUROC: {BY['hog']}", adapter.cell("auroc", mean, "hog", nih)],
        [f"13 findings, mean AUROC: {BY['cnn']}", adapter.cell("auroc", mean, "cnn", nih)],
        ["tuberculosis, AUROC: zero-shot", zero.cell("auroc", "tuberculosis", "zero-shot", "shenzhen")],
        [f"tuberculosis, AUROC: {BY['hog']}", zero.cell("auroc", "tuberculosis", "hog", "shenzhen")],
        ["phantom findings, mean AUROC: zero-shot", zero.cell("auroc", "mean", "zero-shot", "phantoms")],
    ]
    return f"{table(['test split, 95 % interval over patients', ''], rows)}\n\n{adapter.footing()}"


def views() -> str:
    """Mean AUROC over the findings with enough films, AP and PA apart."""
    adapter, zero = Result.read("cxr-findings"), Result.read("zero-shot")
    rows = []
    for view in ("AP", "PA"):
        cells = [
            adapter.cell("auroc", "mean of findings", "cxr-findings", "nih_cxr14", f"view={view}"),
            zero.cell("auroc", "mean of findings", "zero-shot", "nih_cxr14", f"view={view}"),
            *(adapter.cell("auroc", "mean of findings", by, "nih_cxr14", f"view={view}") for by in ("hog", "cnn")),
        ]
        rows.append([view, *cells])
    return table(["mean AUROC", "`cxr-findings`", "zero-shot", BY["hog"], BY["cnn"]], rows)


def other() -> str:
    """Zero-shot labels of the other sources beside the baselines; retrieval of readings."""
    zero = Result.read("zero-shot")
    rows = []
    for source in ("shenzhen", "kermany"):
        for label in zero.labels("auroc", "zero-shot", source):
            cells = [zero.cell("auroc", label, by, source) for by in ("zero-shot", "hog", "cnn")]
            rows.append([source, f"AUROC, {label}", *cells])
    for name in zero.names("shenzhen"):
        if name.startswith("recall"):
            bys = zero.bys(name, "shenzhen")
            rows += [["shenzhen", f"{name}, {by}", zero.cell(name, "", by, "shenzhen"), "-", "-"] for by in bys]
    return f"{table(['source', 'what', 'zero-shot', BY['hog'], BY['cnn']], rows)}\n\n{zero.footing()}"


def phantoms() -> str:
    """Findings, sides and pointing on phantoms."""
    zero = Result.read("zero-shot")
    names = [name for name in zero.names("phantoms") if zero.bys(name, "phantoms") == ["zero-shot"]]
    labels = zero.labels(names[0], "zero-shot", "phantoms")
    return table(
        ["finding", *names], [[label, *(zero.cell(n, label, "zero-shot", "phantoms") for n in names)] for label in labels]
    )


def gate() -> str:
    """What share of each kind of picture is assessed."""
    zero = Result.read("zero-shot")
    rows = []
    for group in ("chest films", "to be refused", "to be refused, of kinds never seen", "told apart"):
        for label in dict.fromkeys(one["label"] for one in zero.measures if one["by"] == "gate" and one["group"] == group):
            rows.append([group, label, zero.cell("assessed", label, "gate", group=group)])
    return table(["", "picture", "share assessed"], rows)


def library() -> str:
    """The other bundled adapters, from their own cards: what `vesalius finetune` measured once training was over."""
    rows = []
    for card in sorted((ROOT / "adapters" / "library").glob("*/card.json")):
        content = json.loads(card.read_text(encoding="utf-8"))
        if content["name"] == "cxr-findings":
            continue
        shown = [one for one in content["metrics"] if one["split"] not in ("val", "phantoms") and one["name"] in HEADLINES]
        for one in shown:
            measure = f"{one['name']} {one['label']}".strip()
            rows.append([f"`{content['name']}`", one["split"], measure, _interval(one), str(one["films"])])
    return table(["adapter", "split", "measure", "", "films"], rows)


def _interval(one: dict[str, Any]) -> str:
    bounds = "" if one["low"] is None else f" ({one['low']:.2f} to {one['high']:.2f})"
    return f"{one['value']:.2f}{bounds}"


def chat() -> str:
    """How often answers change with the film, and how often they are right."""
    told = Result.read("chat")
    rows = [
        [one["name"], one["by"], one["label"] or one["source"], told.cell(one["name"], one["label"], one["by"], one["source"])]
        for one in told.measures
    ]
    return f"{table(['what', 'film shown', 'of', ''], rows)}\n\n{told.footing()}"


def pointing() -> str:
    """How often a map's peak lies on the finding, beside those who look at nothing and both sanity checks."""
    told = Result.read("explanations")
    rows = []
    for section in told.content["sections"]:
        for one in section["measures"]:
            if one["name"] == "hit":
                rows.append([section["title"], one["by"], f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"])
    command = told.content["about"]["command"]
    return f"{table(['', 'pointed at by', 'share of hits'], rows)}\n\n`{command}`; 95 % intervals over films."


def conformal() -> str:
    """What conformal sets cover, over new splits by patient and on the one split there is, label by label."""
    told = Result.read("coverage")
    of = {(m["source"], m["label"], m["group"], m["by"], m["name"]): m for m in told.measures}
    rows = []
    for adapter, label in dict.fromkeys((one["source"], one["label"]) for one in told.measures):
        places = [(group, by) for group in ("with it", "without it") for by in COVERED]
        found = [of.get((adapter, label, *place, "coverage")) for place in places]
        cells = ["-" if one is None else _interval(one) for one in found]
        counts = [of[adapter, label, "with it", "val to test", f"patients of {split}"] for split in ("val", "test")]
        patients = [f"{one['value']:.0f}" for one in counts]
        rows.append([f"`{adapter}`", label, ", ".join(patients), *cells])
    heads = [f"{group}: {by}" for group in ("with it", "without") for by in ("new splits", "val to test")]
    shown = table(["adapter", "label", "patients with it (val, test)", *heads], rows)
    sections = " ".join(f"`{one['title']}`: {one['note']}" for one in told.content["sections"])
    about = told.content["about"]
    return f"{shown}\n\n{sections} {_odd(told)} {_by_film(told)}\n\n`{about['command']}`; {about['hardware']}."


COVERED = ("new splits", "val to test")


def _odd(told: Result, shown: int = 4) -> str:
    """Where the one split is furthest for chance."""
    far = sorted((one for one in told.measures if one["name"] == "new splits as far off"), key=lambda one: one["value"])
    odd = ", ".join(f"{one['label']} {one['group']} {one['value']:.2f}" for one in far[:shown])
    return f"Of the {len(far)} lines the one split is oddest for (share of new splits as far from their mean): {odd}."


def _by_film(told: Result) -> str:
    held = [one["value"] for one in told.measures if (one["by"], one["name"]) == ("new splits", "coverage by film")]
    return f"With every film alike the means over new splits are {min(held):.2f} to {max(held):.2f}."


FIGURES: dict[str, Callable[[], str]] = {
    "summary": summary, "findings": findings, "views": views, "other": other, "phantoms": phantoms, "gate": gate, "chat": chat,
    "library": library, "pointing": pointing, "conformal": conformal,
}  # fmt: skip


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
