"""Lanes: who waits for them to be idle is let go once nothing runs."""

from __future__ import annotations

import threading

from serving.lanes import Lanes


def test_wait_idle_returns_once_nothing_runs() -> None:
    gate, done = threading.Event(), list[int]()
    lanes: Lanes[int] = Lanes(2, lambda job: gate.wait(10) and None, done.append)
    lanes.submit(1)
    lanes.submit(2)
    assert lanes.free == 0
    threading.Timer(0.05, gate.set).start()
    lanes.wait_idle()
    assert lanes.busy == 0
