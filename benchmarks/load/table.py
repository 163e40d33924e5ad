"""From figures to a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ROWS: Sequence[tuple[str, str, str]] = (
    ("saturated, 16 clients, over the offline pipeline", "rate_16/pipeline", "at least 0.95"),
    ("saturated, 32 clients, over the offline pipeline", "rate_32/pipeline", "at least 0.95"),
    ("saturated, 16 clients, over the better of pipeline and lanes", "rate_16/best_offline", ""),
    ("saturated, 32 clients, over the better of pipeline and lanes", "rate_32/best_offline", ""),
    ("films a second, 16 clients", "rate_16", ""),
    ("median at one client over the bare call with decode", "p50_1/bare", "at most 1.15"),
    ("the bare call with decode, ms", "bare_ms", ""),
    ("99th percentile at 70 % of saturation over the bare call", "p99_open/bare", "at most 12"),
    ("films a second then", "rate_open", ""),
    ("half of the callers leave: good answers over saturation", "leaving/saturation", "at least 0.85"),
    ("the same of a server that wastes nothing", "leaving_ideal", ""),
    ("the first over the second", "leaving/ideal", ""),
    ("answers that reached someone, over saturation", "leaving_reached/saturation", ""),
    ("films through the trunk for nobody, of all", "leaving_in_vain", ""),
    ("1 % broken films: good ones lost", "broken_1_lost", "0"),
    ("20 % broken films: good ones lost", "broken_20_lost", "0"),
    ("processor ms a film, offline", "offline_cpu_ms", ""),
    ("processor ms a film, server at 16 clients", "server_cpu_ms_16", ""),
    ("processor ms a film, the clients", "client_cpu_ms_16", ""),
    ("share of the cores other programs took", "others_share", ""),
)


def markdown(found: Mapping[str, Any]) -> str:
    """One column a case, one row a figure; the hardware above."""
    cases = found["cases"]
    start, plan = found["start"], found["plan"]
    head = ["figure", "aim", *(f"{case['size']} px, {case['form']}" for case in cases)]
    lines = [
        f"{found['hardware']}; {plan['precision']}; {plan['rounds']} rounds of {plan['seconds']:g} s a run; "
        f"options {' '.join(plan['options']) or 'none'}.",
        "",
        _row(head),
        _row(["---"] * len(head)),
        *(_row([text, aim, *(f"{case[key]:.3g}" for case in cases)]) for text, key, aim in _ROWS),
        "",
        f"First answer {start['first_answer_s']:.1f} s after the command (aim 8). Memory of all processes then "
        f"{_memory(start['memory_mb'])}, at the end {_memory(start['memory_mb_at_the_end'])} (aim 1.0 GB).",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _memory(found: Mapping[str, float]) -> str:
    return f"{found['pss'] / 1024:.2f} GB (PSS; summed RSS {found['rss'] / 1024:.2f})"
