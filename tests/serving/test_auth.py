"""Who is let in: this machine without a key, the key's holder otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from live_api import serving

from foundation.errors import InvalidRequest
from serving.api.app import create_app
from serving.auth import check_bind, is_loop_back, key_from_environment, operator_ring
from serving.fake import FakeGateway

KEY = "correct-horse-battery-staple"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loop_back_addresses(host: str) -> None:
    assert is_loop_back(host)
    check_bind(host, operator_ring(None))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.2", "localhost.example.org", "", "example.org"])
def test_other_addresses_need_a_key(host: str) -> None:
    assert not is_loop_back(host)
    with pytest.raises(InvalidRequest, match="vesalius keys add NAME"):
        check_bind(host, operator_ring(None))
    check_bind(host, operator_ring(KEY))


def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESALIUS_API_KEY", KEY)
    assert key_from_environment() == KEY
    monkeypatch.setenv("VESALIUS_API_KEY", "")
    assert key_from_environment() is None


def test_a_short_key_is_refused_everywhere() -> None:
    with pytest.raises(InvalidRequest, match="shorter than 16"):
        operator_ring("secret")


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    with serving(create_app(FakeGateway(), api_key=KEY)) as address:
        yield address


def test_every_route_asks_for_the_key(locked: str) -> None:
    app = create_app(FakeGateway())
    routes = [
        (method, path.replace("{model_id}", "x").replace("{model_id:path}", "x"))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]
    assert len(routes) >= 10
    for method, path in [*routes, ("get", "/openapi.json"), ("get", "/nowhere")]:
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY}, {"Authorization": "Bearer"}):
            refused = httpx.request(method, locked + path, headers=headers, trust_env=False)
            assert refused.status_code == 401, (method, path, headers)
            assert refused.json()["error"]["code"] == "unauthorized"
            assert refused.headers["www-authenticate"] == "Bearer"


def test_the_key_opens(locked: str) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {KEY}", "Host": "vesalius.example.org"}
        assert httpx.get(f"{locked}/v1/models", headers=headers, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Origin": "http://127.0.0.1:7860"}, 200),
        ({"Host": "rebound.example.org"}, 401),
        ({"Origin": "https://example.org"}, 401),
        ({"Origin": "null"}, 401),
    ],
)
def test_without_a_key_only_this_machine_is_answered(address: str, headers: dict[str, str], status: int) -> None:
    """A page in the user's browser can send requests to 127.0.0.1, under its own Origin or a rebound Host."""
    assert httpx.get(f"{address}/v1/models", headers=headers, trust_env=False).status_code == status
