"""The page's own part: bars that escape what they show."""

from __future__ import annotations

from app.ui import bars


def test_bars_escape_labels_and_clip_widths() -> None:
    shown = bars([("<script>", 1.7), ("effusion", 0.25)])
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "width:100.0%" in shown
    assert "width:25.0%" in shown
    assert "0.25" in shown
