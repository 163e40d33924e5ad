"""Schemathesis over the whole OpenAPI document: whatever is sent, no server error.

    python -m benchmarks.schema --examples 60

Needs the package `schemathesis` (4.32 or later), which is not among the extras. The app runs on a socket over the fake
gateway, so every route, body and header of the document is real and no model is asked.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from serving.api.app import create_app
from serving.fake import FakeGateway

MISSING = "schemathesis is not installed: pip install 'schemathesis>=4.32', then run this again."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schema", description=__doc__)
    parser.add_argument("--examples", type=int, default=60, help="requests of each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    chosen = parser.parse_args()
    if importlib.util.find_spec("schemathesis") is None:
        print(MISSING, file=sys.stderr)
        return 2
    with served() as url:
        found = ask_everything(url, chosen.examples, chosen.seed)
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.report:
        chosen.report.parent.mkdir(parents=True, exist_ok=True)
        chosen.report.write_text(text + "\n", encoding="utf-8")
    return 0 if found["clean"] else 1


def ask_everything(url: str, examples: int, seed: int) -> dict[str, Any]:
    """Every operation of the document at `url`, each `examples` times; statuses by operation, and what failed."""
    import schemathesis

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: dict[str, Counter[str]] = {}
    faults: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        statuses[operation.label], own = _ask(operation, examples, seed)
        faults += own
    requests = sum(sum(told.values()) for told in statuses.values())
    return {
        "operations": len(statuses),
        "requests": requests,
        "statuses": {label: dict(told) for label, told in statuses.items()},
        "faults": faults,
        "clean": not faults and requests > 0,
    }


def _ask(operation: Any, examples: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Statuses of one operation's answers, and the requests that failed the server."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    told, faults = Counter[str](), list[str]()

    @seeded(seed)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call()
        told[str(answer.status_code)] += 1
        if answer.status_code >= 500:
            faults.append(f"{operation.label}: {answer.status_code} for {case.as_curl_command()[:400]}")

    ask()
    return told, faults


@contextmanager
def served() -> Iterator[str]:
    """The app over the fake gateway on a socket of this machine."""
    server = uvicorn.Server(uvicorn.Config(create_app(FakeGateway()), log_config=None, lifespan="on"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


if __name__ == "__main__":
    sys.exit(main())
