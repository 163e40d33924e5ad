"""Deny by default: every route and every method, without a key, with a wrong one, and with the wrong scope."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from live_api import error_of, serving

from serving.api.app import create_app
from serving.fake import FakeGateway
from serving.keys import KeyFile, KeyRing
from serving.scopes import ROUTES, scope_for

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path template) of everything the app would route to; HEAD goes with its GET."""
    found = []
    for route in _leaves(app.routes):
        found += [(method, route.path) for method in sorted(route.methods or ()) if method != "HEAD"]
    return found


def _leaves(routes: object) -> Iterator[object]:
    for route in routes:  # type: ignore[attr-defined]
        inner = getattr(route, "original_router", None) or getattr(route, "router", None)
        nested = getattr(route, "routes", None) or getattr(inner, "routes", None)
        if nested:
            yield from _leaves(nested)
        else:
            yield route


def concrete(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "x", path)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = KeyFile(tmp_path_factory.mktemp("home") / "keys.json")
    made = {name: file.add(name, (name,), per_minute=0)[1] for name in ("infer", "admin")}  # type: ignore[arg-type]
    made["revoked"] = file.add("revoked", ("infer", "admin"))[1]
    file.revoke("revoked")
    made["slow"] = file.add("slow", ("infer",), per_minute=8)[1]
    return {**made, "file": str(file.path)}


@pytest.fixture(scope="module")
def app(keys: dict[str, str]) -> FastAPI:
    return create_app(FakeGateway(), keys=KeyRing(KeyFile(Path(keys["file"]))))


@pytest.fixture(scope="module")
def locked(app: FastAPI) -> Iterator[httpx.Client]:
    with serving(app) as address, httpx.Client(base_url=address, trust_env=False, timeout=30) as http:
        yield http


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_route_stands_in_the_table_and_the_table_holds_no_other(app: FastAPI) -> None:
    routed = routes_of(app)
    assert len(routed) >= 13
    told = {(method, re.sub(r"\{[^}]*\}", "*", path)) for method, path in routed}
    assert told == set(ROUTES)


def test_what_is_not_in_the_table_needs_admin() -> None:
    assert scope_for("POST", "/v1/adapters/new") == scope_for("GET", "/nowhere") == "admin"
    assert scope_for("HEAD", "/v1/models") == scope_for("OPTIONS", "/v1/zero_shot") == "admin"
    assert scope_for("POST", "/v1/zero_shot/") == "admin"
    assert scope_for("GET", "/v1/models/a/b") == "infer"


def test_every_route_and_method_is_401_without_a_right_key(app: FastAPI, locked: httpx.Client, keys: dict[str, str]) -> None:
    paths = {concrete(path) for _, path in routes_of(app)} | {"/", "/nowhere", "/docs", "/v1/adapters/x", "/openapi.json/"}
    wrong = (
        {},
        bearer(keys["infer"] + "x"),
        bearer(keys["infer"][:-1]),
        bearer(keys["revoked"]),
        {"Authorization": keys["infer"]},
        {"Authorization": f"Basic {keys['infer']}"},
        {"X-Api-Key": keys["infer"]},
        {"Cookie": f"key={keys['infer']}"},
    )
    for path in sorted(paths):
        for method in METHODS:
            for headers in wrong:
                answer = locked.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path, list(headers))
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["x-request-id"].startswith("req-")
                if method != "HEAD":
                    assert error_of(answer)["code"] == "unauthorized"
    assert locked.get(f"/v1/models?key={keys['infer']}&api_key={keys['infer']}").status_code == 401


def test_every_route_is_403_with_the_other_scope_and_open_with_its_own(
    app: FastAPI, locked: httpx.Client, keys: dict[str, str]
) -> None:
    for method, path in routes_of(app):
        scope = scope_for(method, concrete(path))
        for name in ("infer", "admin"):
            status = locked.request(method, concrete(path), headers=bearer(keys[name])).status_code
            if scope in (None, name):
                assert status not in (401, 403), (method, path, name)
            else:
                assert status == 403, (method, path, name)
    refused = locked.get("/metrics", headers=bearer(keys["infer"]))
    assert error_of(refused)["code"] == "forbidden"
    assert error_of(refused)["type"] == "permission_error"
    assert locked.options("/v1/models", headers=bearer(keys["infer"])).status_code == 403


def test_a_revoked_key_is_refused_by_the_running_server(locked: httpx.Client, keys: dict[str, str]) -> None:
    file = KeyFile(Path(keys["file"]))
    _, secret = file.add("leaving", ("infer",))
    assert locked.get("/v1/models", headers=bearer(secret)).status_code == 200
    file.revoke("leaving")
    assert locked.get("/v1/models", headers=bearer(secret)).status_code == 401


def test_a_key_has_its_own_rate_and_health_is_not_rationed(locked: httpx.Client, keys: dict[str, str]) -> None:
    statuses = [locked.get("/v1/models", headers=bearer(keys["slow"])).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]  # a quarter of eight at once
    refused = locked.get("/v1/models", headers=bearer(keys["slow"]))
    assert error_of(refused)["code"] == "overloaded"
    assert 1 <= int(refused.headers["retry-after"]) <= 8
    assert locked.get("/healthz", headers=bearer(keys["slow"])).status_code == 200
    assert locked.get("/v1/models", headers=bearer(keys["infer"])).status_code == 200


def test_the_key_never_reaches_an_answer_or_the_openapi_document(locked: httpx.Client, keys: dict[str, str]) -> None:
    text = locked.get("/openapi.json", headers=bearer(keys["infer"])).text
    assert keys["infer"] not in text
