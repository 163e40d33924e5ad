"""Schemathesis over the whole OpenAPI document, in short: no server error, and every operation answered with success once.

The long form: `python -m benchmarks.schema`.
"""

from __future__ import annotations

import httpx
import pytest

from benchmarks.schema import ask_everything, served

EXAMPLES = 2
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.mark.filterwarnings("ignore::Warning")  # of schemathesis and hypothesis, about the document's examples
def test_whatever_the_document_allows_is_no_server_error() -> None:
    pytest.importorskip("schemathesis")
    with served() as url:
        paths = httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]
        found = ask_everything(url, EXAMPLES, seed=0)
    assert found["faults"] == []
    assert found["never answered with success"] == []
    assert found["operations"] == sum(len(METHODS & set(path)) for path in paths.values())
    assert found["requests"] >= 2 * found["operations"]
