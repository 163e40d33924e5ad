"""Chat answered by another engine: a made-up OpenAI server behind ours, the public client before it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import pytest
from fastapi import FastAPI, Request
from live_api import LIMITS, color_picture, data_uri, png_film, serving
from PIL import Image
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from foundation.errors import InvalidRequest
from serving.api.app import create_app
from serving.chat_backend import KEY_VARIABLE, ChatBackend, plain_url
from serving.fake import ADAPTER, BASE, FakeGateway, fake_film
from serving.forwarding import ForwardingGateway
from serving.messages import RawFilm

WORDS = ["The", " film", " is", " clear", "."]
SECRET = "a secret of the other engine"


class OtherEngine:
    """How it is to behave, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.way = "answers"
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._chat)
        self.app.post("/elsewhere")(self._chat)

    async def _chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        if self.way == "fails":
            return JSONResponse({"error": {"message": SECRET}}, status_code=500)
        if self.way == "is busy":
            return JSONResponse({"error": {"message": SECRET}}, status_code=429)
        if self.way == "redirects":
            return RedirectResponse("/elsewhere", status_code=307)
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> Any:
        yield b": a comment\n\n"
        for index, word in enumerate(WORDS):
            logprobs = {"content": [{"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
            yield _event({"index": 0, "delta": {"content": word}, "logprobs": logprobs, "finish_reason": None})
            if index == 1 and self.way == "breaks off":
                return
            if index == 1 and self.way == "babbles":
                yield b"data: {not json\n\n"
        yield _event({"index": 0, "delta": {}, "finish_reason": "length" if self.way == "is cut" else "stop"})
        yield b'data: {"id": "their-id", "choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 5}}\n\n'
        yield b"data: [DONE]\n\n"


def _event(choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"id": "their-id", "model": "theirs", "choices": [choice]}).encode() + b"\n\n"


@pytest.fixture(scope="module")
def other() -> OtherEngine:
    return OtherEngine()


@pytest.fixture(scope="module")
def behind() -> FakeGateway:
    return FakeGateway()


@pytest.fixture(scope="module")
def address(other: OtherEngine, behind: FakeGateway) -> Iterator[str]:
    with serving(other.app) as there:
        backend = ChatBackend.of(f"openai:{there}/v1", [f"{there}/v1/"], "big-model", {KEY_VARIABLE: "sesame"})
        with serving(create_app(ForwardingGateway(behind, backend, ADAPTER), limits=LIMITS)) as here:
            yield here


@pytest.fixture
def client(address: str, other: OtherEngine) -> Iterator[openai.OpenAI]:
    other.way = "answers"
    other.asked.clear()
    with openai.OpenAI(base_url=f"{address}/v1", api_key="ours", max_retries=0) as found:
        yield found


def ask(client: openai.OpenAI, film: bytes = b"", **options: Any) -> Any:
    image = {"type": "image_url", "image_url": {"url": data_uri(film or png_film())}}
    messages: Any = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "where?"}, image]},
    ]
    return client.chat.completions.create(model=BASE, messages=messages, **options)


def test_the_answer_is_theirs_and_the_shape_is_ours(client: openai.OpenAI, other: OtherEngine, behind: FakeGateway) -> None:
    whole = ask(client, seed=3, temperature=0.5, top_p=0.9, stop=["x"], max_tokens=40)
    assert whole.choices[0].message.content == "".join(WORDS)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.id.startswith("chatcmpl-")
    assert whole.model == BASE
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (11, 5)
    assert whole.vesalius["provenance"]["model"] == "big-model"
    evidence = whole.vesalius["evidence"]
    assert [one["label"] for one in evidence["findings"]]
    assert evidence["reliance"] is None
    (body,) = other.asked
    assert other.keys[-1] == "Bearer sesame"
    sent = {name: body[name] for name in ("model", "seed", "temperature", "top_p", "stop", "max_tokens", "stream")}
    assert sent == {
        "model": "big-model", "seed": 3, "temperature": 0.5, "top_p": 0.9, "stop": ["x"], "max_tokens": 40, "stream": True
    }  # fmt: skip
    assert [one["role"] for one in body["messages"]] == ["user", "assistant", "user"]
    image, text = body["messages"][-1]["content"]
    assert text == {"type": "text", "text": "where?"}
    png = base64.b64decode(image["image_url"]["url"].partition(",")[2])
    shown = fake_film(RawFilm(png_film())).pixels
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), shown)


def test_a_stream_passes_through_piece_by_piece_under_our_ids(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
    chunks = list(ask(client, **options))
    assert [one.choices[0].delta.content for one in chunks if one.choices and one.choices[0].delta.content] == WORDS
    assert {one.id for one in chunks} == {chunks[0].id}
    assert chunks[0].id != "their-id"
    assert [one.choices[0].logprobs.content[0].logprob for one in chunks if one.choices and one.choices[0].logprobs] == [
        -0.5
    ] * 5
    assert chunks[-1].usage.completion_tokens == 5


def test_a_cut_answer_says_so(client: openai.OpenAI, other: OtherEngine) -> None:
    other.way = "is cut"
    assert ask(client).choices[0].finish_reason == "length"


@pytest.mark.parametrize(("way", "status"), [("fails", 503), ("is busy", 429), ("redirects", 503), ("breaks off", 503)])
def test_what_goes_wrong_there_is_told_in_our_words(client: openai.OpenAI, other: OtherEngine, way: str, status: int) -> None:
    other.way = way
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client)
    assert refused.value.status_code == status
    assert SECRET not in str(refused.value)
    assert len(other.asked) == 1  # a redirect is not followed


@pytest.mark.parametrize("way", ["breaks off", "babbles"])
def test_a_stream_that_breaks_ends_with_an_error_event(client: openai.OpenAI, other: OtherEngine, way: str) -> None:
    other.way = way
    pieces: list[str] = []
    with pytest.raises(openai.APIError, match="chat engine"):
        pieces.extend(chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True))
    assert "".join(pieces) == "The film"


def test_a_film_that_is_not_assessed_goes_nowhere(client: openai.OpenAI, other: OtherEngine) -> None:
    answer = ask(client, color_picture())
    assert answer.choices[0].message.content.startswith("Not assessed: this looks like a photograph.")
    assert not answer.vesalius["evidence"]["assessed"]
    assert other.asked == []


def test_the_base_can_chat_though_it_has_no_decoder(other: OtherEngine) -> None:
    class Mute(FakeGateway):
        def models(self) -> Any:
            from dataclasses import replace

            return [replace(one, capabilities=("zero_shot",)) for one in super().models()[:1]]

    @contextmanager
    def chained() -> Iterator[str]:
        with serving(other.app) as there:
            backend = ChatBackend.of(f"openai:{there}/v1", [f"{there}/v1"], "big-model", {})
            with serving(create_app(ForwardingGateway(Mute(), backend), limits=LIMITS)) as here:
                yield here

    other.way = "answers"
    with chained() as here, openai.OpenAI(base_url=f"{here}/v1", api_key="ours", max_retries=0) as client:
        answer = ask(client)
        assert answer.choices[0].message.content == "".join(WORDS)
        assert answer.vesalius["evidence"]["findings"] == []
    assert other.keys[-1] is None


@pytest.mark.parametrize(
    ("text", "allowed", "model", "param"),
    [
        ("openai:http://a:1/v1", (), "m", "chat-allow"),
        ("openai:http://a:1/v1", ("http://a:2/v1",), "m", "chat-allow"),
        ("openai:http://a:1/v1", ("http://a:1",), "m", "chat-allow"),
        ("openai:https://a/v1", ("http://a/v1",), "m", "chat-allow"),
        ("openai:http://user:pass@a/v1", ("http://a/v1",), "m", "chat-backend"),
        ("openai:http://a/v1?x=http://b", ("http://a/v1",), "m", "chat-backend"),
        ("openai:file:///etc/passwd", ("file:///etc/passwd",), "m", "chat-backend"),
        ("openai:http://a:999999/v1", ("http://a/v1",), "m", "chat-backend"),
        ("http://a/v1", ("http://a/v1",), "m", "chat-backend"),
        ("openai:http://a/v1", ("http://a/v1",), "", "chat-model"),
    ],
)
def test_an_address_that_is_not_allowed_is_refused(text: str, allowed: tuple[str, ...], model: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ChatBackend.of(text, allowed, model, {})
    assert refused.value.param == param


def test_one_address_written_two_ways_is_one_address() -> None:
    assert plain_url("HTTP://Host:80/v1/", "x") == plain_url("http://host/v1", "x") == "http://host/v1"
    backend = ChatBackend.of("openai:http://HOST/v1", ("http://host:80/v1/",), "m", {KEY_VARIABLE: "sesame"})
    assert "sesame" not in repr(backend)
