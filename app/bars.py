"""Findings as horizontal bars: the number as text, the threshold as a tick, all of it readable by a screen reader."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from app.words import ABSENT, BAR, BAR_THRESHOLD, PRESENT, THRESHOLD


@dataclass(frozen=True)
class Bar:
    """value and threshold: 0 to 1; threshold None where nothing is decided."""

    label: str
    value: float
    threshold: float | None = None

    @property
    def is_present(self) -> bool:
        return self.threshold is not None and self.value >= self.threshold

    @property
    def sentence(self) -> str:
        value = f"{self.value:.2f}"
        if self.threshold is None:
            return BAR.format(label=self.label, value=value)
        verdict = PRESENT if self.is_present else ABSENT
        return BAR_THRESHOLD.format(label=self.label, value=value, threshold=f"{self.threshold:.2f}", verdict=verdict)


def bars_html(bars: Sequence[Bar]) -> str:
    """The bars in the order given."""
    return f'<ul class="bars">{"".join(_row(bar) for bar in bars)}</ul>'


def track_html(bar: Bar) -> str:
    """What is inside the track: how far it is filled, and the threshold's tick."""
    fill = f'<span class="fill" style="width:{_percent(bar.value)}"></span>'
    if bar.threshold is None:
        return fill
    title = html.escape(THRESHOLD.format(threshold=f"{bar.threshold:.2f}"))
    return f'{fill}<span class="tick" style="left:{_percent(bar.threshold)}" title="{title}"></span>'


def _row(bar: Bar) -> str:
    return (
        f'<li class="{"found" if bar.is_present else "bar"}" aria-label="{html.escape(bar.sentence)}" '
        f'title="{html.escape(bar.sentence)}">'
        f'<span class="name">{html.escape(bar.label)}</span>'
        f'<span class="track" aria-hidden="true">{track_html(bar)}</span>'
        f'<span class="number">{bar.value:.2f}</span></li>'
    )


def _percent(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.1f}%"
