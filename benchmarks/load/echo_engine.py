"""An engine process that answers every request at once, for relay.py."""

from __future__ import annotations

from serving.messages import Outcome
from serving.spawn import parent_arena, parent_channel
from serving.transport import outcome_to_plain, request_from_plain

VALUE = {"embeddings": [[0.1] * 512], "compute_ms": 1.0}


def main() -> None:
    channel, arena = parent_channel(), parent_arena()
    channel.receive()
    channel.send({"kind": "hello", "facts": {"name": "echo"}})
    for message in channel:
        if message["kind"] == "request":
            request = request_from_plain(message["request"], arena)
            channel.send({"kind": "outcome", "outcome": outcome_to_plain(Outcome(request.id, VALUE))})


if __name__ == "__main__":
    main()
