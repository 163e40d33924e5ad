"""The app over a FakeGateway behind a real socket: one server for all tests of the API, a fresh gateway for each."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from live_api import LIMITS, serving

from serving.api.app import create_app
from serving.fake import FakeGateway


@pytest.fixture(scope="session")
def app() -> FastAPI:
    return create_app(FakeGateway(), limits=LIMITS)


@pytest.fixture(scope="session")
def address(app: FastAPI) -> Iterator[str]:
    with serving(app) as found:
        yield found


@pytest.fixture
def gateway(app: FastAPI) -> FakeGateway:
    app.state.service.gateway = FakeGateway()
    return app.state.service.gateway


@pytest.fixture
def http(address: str, gateway: FakeGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as found:
        yield found
