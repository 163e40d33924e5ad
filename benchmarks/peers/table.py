"""From rounds to medians, to a table in Markdown, and into a page between two markers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_ROWS: tuple[tuple[str, str], ...] = (
    ("median at one client over the bare call with decode", "p50_1/bare"),
    ("99th percentile at 70 % of its own saturation, over the bare call", "p99_open/bare"),
    ("films a second then", "rate_open"),
    ("half of the callers leave: good answers over saturation", "leaving/saturation"),
    ("1 % broken films: good ones lost", "broken_1_lost"),
    ("20 % broken films: good ones lost", "broken_20_lost"),
    ("answers after broken films (1 yes)", "lives_on"),
    ("from the command to the first answer, s", "first_answer_s"),
    ("memory of all its processes at the first answer, MB (PSS)", "memory_mb"),
    ("memory after load, MB (PSS)", "memory_end_mb"),
    ("cosine of its embedding to that of `vesalius serve`", "cosine"),
)


def medians(rounds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Of each figure over the rounds that have it; None where none has."""
    names = dict.fromkeys(name for row in rounds for name in row)
    known = {name: [value for row in rounds if (value := row.get(name)) is not None] for name in names}
    return {name: round(statistics.median(values), 4) if values else None for name, values in known.items()}


def markdown(found: Mapping[str, Any]) -> str:
    """A table a case, a column a server; then what each is, and why one is missing."""
    plan = found["plan"]
    lines = [
        f"{found['hardware']}; {plan['model']} in {plan['precision']}; {plan['rounds']} rounds of {plan['seconds']:g} s a run, "
        "each server started anew in each round and the bare model measured right before and after it; medians of ratios."
    ]
    for case in found["cases"]:
        lines += ["", f"**{case['size']} px, {case['form']}**", "", *_table(case["servers"], plan["clients"])]
    lines += ["", *(f"- {name}: {text}" for name, text in found["servers"].items())]
    failed = [(name, text) for case in found["cases"] for name, text in case["failed"].items()]
    lines += [f"- not measured: {name}: {text}" for name, text in dict([*found["missing"].items(), *failed]).items()]
    return "\n".join(lines)


def _table(servers: Mapping[str, Mapping[str, float | None]], clients: Sequence[int]) -> list[str]:
    rows = [
        *((f"saturated, {count} clients, over the offline pipeline", f"rate_{count}/pipeline") for count in clients),
        *((f"films a second, {count} clients", f"rate_{count}") for count in clients),
        *_ROWS,
    ]
    names = list(servers)
    cells = [[text, *(_cell(servers[name].get(key)) for name in names)] for text, key in rows]
    return [_row(["figure", *names]), _row(["---"] * (len(names) + 1)), *map(_row, cells)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
