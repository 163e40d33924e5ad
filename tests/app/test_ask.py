"""`vesalius ask`, over a FakeGateway that serves a chat adapter: who is asked, what is shown, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import main
from serving.api.app import create_app
from serving.fake import ADAPTER, BASE, FakeGateway
from serving.gateway import ModelInfo
from tests.serving.live_api import png_film, serving

SPEAKER = ModelInfo(name="questions", kind="adapter", capabilities=("chat",), base=BASE, task="chat", digest="5" * 64)


class WithSpeaker(FakeGateway):
    def models(self) -> list[ModelInfo]:
        return [*super().models(), SPEAKER]


@pytest.fixture(scope="module")
def gateway() -> WithSpeaker:
    return WithSpeaker()


@pytest.fixture(scope="module")
def address(gateway: WithSpeaker) -> Iterator[str]:
    with serving(create_app(gateway)) as found:
        yield found


@pytest.fixture
def film(tmp_path: Path) -> str:
    (tmp_path / "film.png").write_bytes(png_film(1))
    return str(tmp_path / "film.png")


def ask(film: str, *options: str) -> int:
    return main(["ask", film, "Is there an effusion?", *options])


def test_an_adapter_is_asked_by_its_name_and_digest(
    address: str, gateway: WithSpeaker, film: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(film, "--adapter", SPEAKER.name, "--server", address, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    request = gateway.requests[-1]
    assert (request.adapter, request.digest, request.operation) == (SPEAKER.name, SPEAKER.digest, "chat")
    assert [turn.text for turn in request.turns] == ["Is there an effusion?"]
    assert answer["vesalius"]["provenance"]["adapter"] == SPEAKER.name
    assert answer["answer"].startswith("The film shows")


def test_without_one_the_model_itself_is_asked(
    address: str, gateway: WithSpeaker, film: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(film, "--server", address) == 0
    assert (gateway.requests[-1].adapter, gateway.requests[-1].digest) == (None, "")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("The film shows")
    assert any(": above its threshold of 0.500" in line for line in lines[1:])


@pytest.mark.parametrize(("name", "words"), [("nobody", "no model 'nobody'"), (ADAPTER, "cannot do 'chat'")])
def test_an_adapter_that_cannot_answer_is_refused_by_name(
    address: str, film: str, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(film, "--adapter", name, "--server", address) == 2
    assert words in capsys.readouterr().err
