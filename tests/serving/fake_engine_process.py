"""An engine process without a model: a request's first text says what it does. Run by test_engine_link.py."""

from __future__ import annotations

import os
import time

from serving.messages import Outcome
from serving.spawn import parent_channel
from serving.transport import outcome_to_plain

channel = parent_channel()
name = channel.receive()["config"]["checkpoint"]
if name == "refused":
    channel.send({"kind": "failed", "code": "checkpoint_refused", "message": "It holds a pickle."})
    time.sleep(60)  # as slow to end as a large model may be
if name == "deaf":  # opening, and seeing nothing of its socket
    time.sleep(60)
if name == "odd":
    channel.send({"kind": "hello"})
channel.send({"kind": "hello", "facts": {"name": name}})
cancelled: list[int] = []
heard: list[str] = []
for message in channel:
    if message["kind"] == "cancel":
        cancelled.append(message["id"])
        continue
    request = message["request"]
    what = request["texts"][0]
    heard.append(what)
    if what in ("die", f"die on {name}"):
        os._exit(1)
    if what in ("hang", f"hang on {name}"):
        time.sleep(60)
    if what == "silence":
        continue
    if what == "slow":
        time.sleep(0.3)
    if what.startswith("stream"):
        for piece in "ab":
            outcome = Outcome(request["id"], {"delta": piece}, is_final=False)
            channel.send({"kind": "outcome", "outcome": outcome_to_plain(outcome)})
    if what == "stream and die":
        time.sleep(0.2)
        os._exit(1)
    value = {"echo": what, "cancelled": list(cancelled), "heard": list(heard)}
    channel.send({"kind": "outcome", "outcome": outcome_to_plain(Outcome(request["id"], value))})
    channel.send({"kind": "beat"})
