"""LoopConfig: odd settings are refused by name; the learning rate rises linearly and falls as a cosine."""

from __future__ import annotations

import pytest

from foundation.errors import InvalidRequest
from training.loop_config import LoopConfig


def test_odd_settings_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="precision is 'fp8'"):
        LoopConfig(epochs=1, precision="fp8")
    with pytest.raises(InvalidRequest, match="epochs must be at least 1"):
        LoopConfig(epochs=0)
    with pytest.raises(InvalidRequest, match="average must lie from 0 to below 1"):
        LoopConfig(epochs=1, average=1.0)


def test_the_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    config = LoopConfig(epochs=1, warmup=0.2, final_rate=0.1)
    rates = [config.rate_at(step, 10) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.55)  # halfway between the peak and the end
    assert rates[10] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
