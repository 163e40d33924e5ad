"""Bars: what they show is escaped, and says in text what it draws."""

from __future__ import annotations

import re

from app.bars import Bar, bars_html


def test_labels_are_escaped_and_widths_stay_within_the_track() -> None:
    shown = bars_html([Bar('<script>"x"', 1.7), Bar("effusion", -0.25)])
    assert "<script>" not in shown
    assert "&lt;script&gt;&quot;x&quot;" in shown
    assert re.findall(r"width:([\d.]+)%", shown) == ["100.0", "0.0"]


def test_number_threshold_and_verdict_are_text() -> None:
    found, absent = Bar("effusion", 0.42, 0.4), Bar("mass", 0.39, 0.4)
    shown = bars_html([found, absent])
    assert 'aria-label="effusion: 0.42, threshold 0.40, at or above the threshold"' in shown
    assert 'aria-label="mass: 0.39, threshold 0.40, below the threshold"' in shown
    assert shown.count("left:40.0%") == 2
    assert shown.count('class="found"') == 1
    assert [*re.findall(r'class="number">([^<]*)<', shown)] == ["0.42", "0.39"]


def test_without_a_threshold_nothing_is_marked_as_found() -> None:
    shown = bars_html([Bar("effusion", 0.99)])
    assert "tick" not in shown
    assert "found" not in shown
