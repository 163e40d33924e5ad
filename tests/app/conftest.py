"""The page over the API over a model that is not there, all on this machine; and films made in code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from serving.api.app import create_app
from serving.client import Client
from serving.fake import FakeGateway
from tests.serving.live_api import serving


@dataclass
class Served:
    """A running API: its client, and the gateway behind it, fresh for each test."""

    client: Client
    gateway: FakeGateway


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command sets up the log of its whole process; here that process goes on."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="session")
def fake_api() -> Iterator[tuple[str, object]]:
    app = create_app(FakeGateway())
    with serving(app) as url:
        yield url, app


@pytest.fixture(scope="session")
def page_client(fake_api: tuple[str, object]) -> Iterator[Client]:
    with Client(fake_api[0]) as client:
        yield client


@pytest.fixture
def served(fake_api: tuple[str, object], page_client: Client) -> Served:
    gateway = FakeGateway()
    fake_api[1].state.service.gateway = gateway  # type: ignore[attr-defined]
    return Served(page_client, gateway)
