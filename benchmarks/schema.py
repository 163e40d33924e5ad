"""Schemathesis over the whole OpenAPI document: whatever is sent, no server error.

    python -m benchmarks.schema --examples 60

Needs schemathesis, of the extra `test`. The app runs on a socket over the fake gateway, so every route, body and header of
the document is real and no model is asked. What is generated from a document names no adapter and holds no film, and so would
be refused at the door: beside each request goes a good one in which one generated field stands (`one_field_wrong`), and
before them all the good one itself, which must be answered. A short form is in the suite.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import io
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from benchmarks.figures import tell
from serving.api.app import create_app
from serving.fake import ADAPTER, DETECTOR, FUSER, SEGMENTER, FakeGateway

MISSING = "schemathesis is not installed: pip install 'vesalius[test]', then run this again."
LONGEST_S = 120.0  # the first film imports its readers
PATH_VALUES = {"name": ADAPTER, "model_id": ADAPTER, "digest": "0" * 64}


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
    tell(found, chosen.report)
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
    unreached = [label for label, told in statuses.items() if not any(status.startswith("2") for status in told)]
    return {
        "operations": len(statuses),
        "requests": requests,
        "statuses": {label: dict(told) for label, told in statuses.items()},
        "never answered with success": unreached,
        "faults": faults,
        "clean": not faults and not unreached,
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
        number = told.total()
        send(case)
        send(one_field_wrong(case, number))

    def send(case: Any) -> None:
        answer = case.call(timeout=LONGEST_S)
        told[str(answer.status_code)] += 1
        if answer.status_code >= 500:
            faults.append(f"{operation.label}: {answer.status_code} for {case.as_curl_command()[:400]}")

    ask()
    return told, faults


def one_field_wrong(case: Any, number: int) -> Any:
    """A request that the server can answer, but for one field of the case's own; the first (number 0) without it."""
    good, own = good_bodies().get(case.operation.path), case.body
    case.path_parameters = {name: PATH_VALUES[name] for name in case.path_parameters or {}}
    if good is None:
        return case
    names = sorted(own) if isinstance(own, dict) and number else []
    changed = {names[number % len(names)]: own[names[number % len(names)]]} if names else {}
    case.body, case.media_type, case.headers = {**good, **changed}, "application/json", {}
    return case


@cache
def good_bodies() -> dict[str, dict[str, Any]]:
    """By route, a body that is answered with success."""
    film = "data:image/png;base64," + base64.b64encode(_film()).decode()
    part = {"type": "image_url", "image_url": {"url": film}}
    labels = ["effusion", "nodule"]
    return {
        "/v1/zero_shot": {"images": [film], "labels": labels},
        "/v1/zero_shot/hf": {"inputs": film, "parameters": {"candidate_labels": labels}},
        "/v1/classify": {"images": [film], "model": ADAPTER},
        "/v1/segment": {"images": [film], "model": SEGMENTER},
        "/v1/anomaly": {"images": [film], "model": DETECTOR},
        "/v1/fuse": {"images": [film], "model": FUSER, "text": "Fever.", "tabular": {"crp": 3}},
        "/v1/analyze": {"images": [film], "tasks": [ADAPTER, SEGMENTER]},
        "/v1/embeddings": {"input": ["effusion", film]},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Is it normal?"}]}]},
        "/v1/adapters/{name}": {},
        "/v1/load_lora_adapter": {"lora_name": ADAPTER, "lora_path": ADAPTER},
        "/v1/unload_lora_adapter": {"lora_name": ADAPTER},
    }


def _film() -> bytes:
    target = io.BytesIO()
    grey = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    Image.fromarray(grey).save(target, "PNG")
    return target.getvalue()


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
