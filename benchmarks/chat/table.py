"""The section of docs/benchmarks.md about the chat lane, from docs/results/chat-lane.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Found = Mapping[str, Any]
AIMS = (
    ("tokens/s over one by one", "saturated", "lane_over_one_by_one", "at least 3.5"),
    ("tokens/s over static batches of 16", "saturated", "lane_over_static", "at least 1.5"),
    ("tokens/s, each chat through one of 8 adapters, over one by one", "saturated", "lane_adapters_over_one_by_one", ""),
    ("greedy answers equal to transformers'", "saturated", "equal_answers", "all, in float32"),
    ("first token, 70 % of the lane's load, over static batches", "load", "at_lanes_load/lane_over_static", "at most 0.1"),
    ("first token, 70 % of static batches' load, over these", "load", "at_statics_load/lane_over_static", ""),
    ("the same, where static batches tell at their end", "load", "at_statics_load/lane_over_static_told", ""),
    ("second question about a film, times faster (lane)", "second_in_lane", "first_over_second", "at least 3"),
    ("second question about a film, times faster (engine)", "second_in_engine", "first_over_second", "at least 3"),
)
ABSOLUTE = (
    ("one by one, tokens/s", "saturated", "one_by_one"),
    ("static batches, tokens/s", "saturated", "static"),
    ("lane, tokens/s", "saturated", "lane"),
    ("tokens of a prompt", "saturated", "prompt_tokens"),
    ("tokens of an answer", "saturated", "tokens_of_an_answer"),
    ("first token, 70 % of the lane's load: lane, s", "load", "at_lanes_load/lane_first_s"),
    ("first token, 70 % of the lane's load: static, s", "load", "at_lanes_load/static_first_s"),
    ("first token, 70 % of static's load: lane, s", "load", "at_statics_load/lane_first_s"),
    ("first token, 70 % of static's load: static, s", "load", "at_statics_load/static_first_s"),
)


def section(found: Found) -> str:
    """Markdown; a column for each model and precision measured."""
    columns: Mapping[str, Found] = found["measured"]
    rounds = ", ".join(f"{name}: {one['rounds']} rounds of {one['questions']} questions" for name, one in columns.items())
    head = ["figure", "aim", *columns]
    lines = [
        "## Chat lane",
        "",
        f"{found['hardware']}; {found['clock']} clock; {rounds}. Medians. `python -m benchmarks.chat --write`",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    lines += [_row(label, aim, group, key, columns) for label, group, key, aim in AIMS]
    lines += [_row(label, "", group, key, columns) for label, group, key in ABSOLUTE]
    return "\n".join(lines) + "\n"


def _row(label: str, aim: str, group: str, key: str, columns: Mapping[str, Found]) -> str:
    told = [_number(one.get(group, {}).get(key)) for one in columns.values()]
    return f"| {' | '.join([label, aim, *told])} |"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
