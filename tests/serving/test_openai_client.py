"""The public `openai` client against the running API: the shapes are OpenAI's if their own client reads them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from fastapi import FastAPI
from live_api import LIMITS, data_uri, dicom_ct_slice, nifti_volume, png_film, wait_until

from serving.fake import ADAPTER, BASE, EMBED_DIM, FakeGateway, answer_words

QUESTION = "Is there an effusion?"


@pytest.fixture
def client(address: str, gateway: FakeGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as found:
        yield found


def ask_about(film: bytes, question: str = QUESTION) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": data_uri(film), "detail": "high"}}
    return [{"role": "user", "content": [{"type": "text", "text": question}, image]}]


def test_models_are_listed_and_found_by_name(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {BASE, ADAPTER} <= set(models)
    assert client.models.retrieve(ADAPTER).vesalius["capabilities"] == ["classify"]
    assert models[BASE].object == "model"


def test_an_unknown_model_is_404_everywhere(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as retrieved:
        client.models.retrieve("nowhere")
    with pytest.raises(openai.NotFoundError) as embedded:
        client.embeddings.create(model="nowhere", input="effusion")
    with pytest.raises(openai.NotFoundError) as asked:
        client.chat.completions.create(model="nowhere", messages=ask_about(png_film()))
    for found in (retrieved, embedded, asked):
        assert (found.value.code, found.value.param) == ("model_not_found", "model")


def test_embeddings_are_the_same_as_float_and_as_base64(client: openai.OpenAI) -> None:
    texts = ["pleural effusion", "normal heart size"]
    by_default = client.embeddings.create(model=BASE, input=texts)  # the client asks for base64 by itself
    as_float = client.embeddings.create(model=BASE, input=texts, encoding_format="float")
    left = np.array([one.embedding for one in by_default.data])
    right = np.array([one.embedding for one in as_float.data])
    assert left.shape == (2, EMBED_DIM)
    np.testing.assert_allclose(left, right, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(right, axis=1), 1, atol=1e-9)
    assert by_default.usage.prompt_tokens == 5


def test_base64_embeddings_are_little_endian_float32(client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model=BASE, input="effusion", encoding_format="base64")
    given = np.frombuffer(base64.b64decode(raw.http_response.json()["data"][0]["embedding"]), dtype="<f4")
    wanted = client.embeddings.create(model=BASE, input="effusion", encoding_format="float").data[0].embedding
    np.testing.assert_allclose(given, wanted, atol=1e-7)


def test_a_film_may_be_embedded_by_every_way_in(client: openai.OpenAI) -> None:
    uri = data_uri(png_film())
    part: Any = {"type": "image_url", "image_url": {"url": uri}}
    ways = [
        client.embeddings.create(model=BASE, input=uri),
        client.embeddings.create(model=BASE, input=[part]),
        client.embeddings.create(model=BASE, input=[], extra_body={"images": [uri]}),
        client.embeddings.create(model=BASE, input=[], extra_body={"images": uri.partition(",")[2]}),
    ]
    for way in ways[1:]:
        assert way.data[0].embedding == ways[0].data[0].embedding
    assert ways[0].vesalius["provenance"][0]["pixels"] == ways[0].vesalius["films"][0]["digest"]


def test_mixed_inputs_keep_their_order(client: openai.OpenAI) -> None:
    film, other = data_uri(png_film(1)), data_uri(png_film(2))
    mixed = client.embeddings.create(
        model=BASE, input=["effusion", film, "normal"], extra_body={"images": [other]}, encoding_format="float"
    )
    alone = [
        client.embeddings.create(model=BASE, input=one, encoding_format="float").data[0].embedding
        for one in ("effusion", film, "normal", other)
    ]
    assert [one.embedding for one in mixed.data] == alone
    assert [one.index for one in mixed.data] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2], [3]]}, "input"),
        ({"input": ""}, "input[0]"),
        ({"input": []}, "input"),
        ({"input": "a", "extra_body": {"colour": "blue"}}, "colour"),
        ({"input": ["a", "data:image/png;base64,AAAA"]}, "input[1]"),
    ],
)
def test_embeddings_refuse_by_name(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=BASE, **options)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_dimensions_that_are_the_models_own_are_accepted(client: openai.OpenAI) -> None:
    assert len(client.embeddings.create(model=BASE, input="a", dimensions=EMBED_DIM).data[0].embedding) == EMBED_DIM


def test_chat_answers_about_a_film(client: openai.OpenAI, gateway: FakeGateway) -> None:
    answer = client.chat.completions.create(model=BASE, messages=ask_about(png_film()))
    asked = gateway.requests[-1]
    assert answer.choices[0].message.content == "".join(answer_words(asked))
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(answer_words(asked))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.vesalius["evidence"]["findings"][0]["probability"] > 0
    assert answer.vesalius["provenance"]["pixels"] == asked.film.digest


def test_streamed_and_whole_answers_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=BASE, messages=ask_about(png_film()))
    chunks = list(client.chat.completions.create(model=BASE, messages=ask_about(png_film()), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert len({chunk.created for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    carriers = [chunk for chunk in chunks if getattr(chunk, "vesalius", None)]
    assert carriers == [chunks[-1]]
    assert chunks[-1].vesalius["evidence"] == whole.vesalius["evidence"]
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_when_asked_for(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=BASE, messages=ask_about(png_film()), stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_cut_answer_says_length(client: openai.OpenAI, stream: bool, limit: str) -> None:
    options: dict[str, Any] = {limit: 2, "stream": stream}
    answer = client.chat.completions.create(model=BASE, messages=ask_about(png_film()), **options)
    reason = list(answer)[-1].choices[0].finish_reason if stream else answer.choices[0].finish_reason
    assert reason == "length"


def test_sampling_reaches_the_engine(client: openai.OpenAI, gateway: FakeGateway) -> None:
    client.chat.completions.create(
        model=BASE, messages=ask_about(png_film()), temperature=0.5, top_p=0.9, seed=7, stop="(", max_tokens=5000
    )
    sampling = gateway.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (0.5, 0.9, 7, ("(",))
    assert sampling.max_tokens == LIMITS.max_tokens


def test_log_probabilities_come_in_openais_shape(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": BASE, "messages": ask_about(png_film()), "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    streamed = [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content or []]
    assert streamed == whole.logprobs.content
    assert "".join(one.token for one in streamed) == whole.message.content
    for one in streamed:
        assert one.bytes == list(one.token.encode())
        assert [top.logprob for top in one.top_logprobs] == [-0.25, -3.0]
        assert one.top_logprobs[0].token == one.token
    plain = client.chat.completions.create(model=BASE, messages=ask_about(png_film()))
    assert plain.choices[0].logprobs is None


def test_harmless_fields_are_accepted(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model=BASE,
        messages=ask_about(png_film()),
        user="u",
        metadata={"study": "1"},
        presence_penalty=0,
        frequency_penalty=0,
        logprobs=False,
        n=1,
        store=False,
        response_format={"type": "text"},
        tools=[],
    )


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"temperature": 3}, "temperature"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"extra_body": {"guided_regex": "x"}}, "guided_regex"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ],
)
def test_chat_refuses_by_name(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": BASE, "messages": ask_about(png_film()), **options})
    assert (refused.value.param, refused.value.code) == (param, "invalid_request")
    assert "pydantic" not in refused.value.message


@pytest.mark.parametrize("url", ["http://127.0.0.1/film.png", "https://example.org/film.png", "file:///etc/passwd"])
def test_no_address_is_fetched(client: openai.OpenAI, url: str) -> None:
    content: Any = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError, match="fetches nothing") as refused:
        client.chat.completions.create(model=BASE, messages=[{"role": "user", "content": content}])
    assert refused.value.param == "messages[0].content[1]"


def test_broken_films_are_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model=BASE, messages=ask_about(b"not a film at all"))
    with pytest.raises(openai.BadRequestError) as cut:
        client.chat.completions.create(model=BASE, messages=ask_about(png_film()[:-900]), stream=True)
    assert (unknown.value.code, unknown.value.param) == ("film_unsupported", "messages[0].content[1]")
    assert (cut.value.code, cut.value.param) == ("film_unreadable", "messages[0].content[1]")


def test_a_body_that_is_too_large_is_413(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=BASE, messages=ask_about(png_film(size=500)))
    assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")


def test_a_conversation_is_about_its_latest_film(client: openai.OpenAI, gateway: FakeGateway) -> None:
    first = client.chat.completions.create(model=BASE, messages=ask_about(png_film(1)))
    spoken: Any = first.choices[0].message.model_dump()  # clients send messages back as they got them
    turns = [*ask_about(png_film(1)), spoken, *ask_about(png_film(2), "And here?")]
    second = client.chat.completions.create(model=BASE, messages=turns)
    asked = gateway.requests[-1]
    assert [turn.role for turn in asked.turns] == ["user", "assistant", "user"]
    assert asked.turns[1].text == first.choices[0].message.content
    alone = client.chat.completions.create(model=BASE, messages=ask_about(png_film(2)))
    assert second.vesalius["film"]["digest"] == alone.vesalius["film"]["digest"]
    assert "latest" in second.vesalius["notes"][0]
    third = client.chat.completions.create(model=BASE, messages=[*ask_about(png_film(1)), spoken, *_plain("Where?")])
    assert third.vesalius["film"]["digest"] == first.vesalius["film"]["digest"]
    assert third.vesalius["notes"] == []


def _plain(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_two_films_in_one_message_are_refused(client: openai.OpenAI) -> None:
    messages = ask_about(png_film(1))
    messages[0]["content"] += ask_about(png_film(2))[0]["content"][1:]
    with pytest.raises(openai.BadRequestError, match="one film at a time") as refused:
        client.chat.completions.create(model=BASE, messages=messages)
    assert refused.value.param == "messages[0].content[2]"


def test_a_question_without_a_film_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=BASE, messages=[{"role": "system", "content": "s"}, *_plain("Hello")])
    assert "send a film" in (answer.choices[0].message.content or "")
    assert answer.vesalius["film"] is None


def test_dicom_and_nifti_parts(client: openai.OpenAI, gateway: FakeGateway) -> None:
    def part(kind: str, data: bytes, **more: int) -> list[dict[str, Any]]:
        film = {"data": base64.b64encode(data).decode(), **more}
        return [{"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": kind, kind: film}]}]

    answer = client.chat.completions.create(model=BASE, messages=part("dicom", dicom_ct_slice()))
    assert gateway.requests[-1].film.source_format == "dicom"
    assert answer.choices[0].message.content == "Not assessed: this looks like an image of modality CT."
    answer = client.chat.completions.create(model=BASE, messages=part("nifti", nifti_volume(), slice_index=3))
    assert (answer.vesalius["film"]["slice_index"], answer.vesalius["film"]["slices"]) == (3, 20)


@pytest.mark.parametrize("stream", [False, True])
def test_failures_behind_the_api_have_their_status(client: openai.OpenAI, gateway: FakeGateway, stream: bool) -> None:
    gateway.error = ("engine_unavailable", "The engine is starting.")
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model=BASE, messages=ask_about(png_film()), stream=stream)
    assert (failed.value.status_code, failed.value.code) == (503, "engine_unavailable")


def test_a_failure_in_the_middle_of_a_stream_reaches_its_reader(client: openai.OpenAI, gateway: FakeGateway) -> None:
    gateway.error, gateway.break_after = ("engine_unavailable", "The engine stopped."), 2
    stream = client.chat.completions.create(model=BASE, messages=ask_about(png_film()), stream=True)
    opening, *words = (next(stream).choices[0].delta.content for _ in range(3))
    assert opening == ""
    assert all(words)
    with pytest.raises(openai.APIError, match="The engine stopped"):
        next(stream)


def test_leaving_a_stream_withdraws_the_question(client: openai.OpenAI, gateway: FakeGateway, app: FastAPI) -> None:
    gateway.delay_s = 0.05
    stream = client.chat.completions.create(model=BASE, messages=ask_about(png_film()), stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: gateway.cancelled == [gateway.requests[0].id])
    wait_until(lambda: app.state.service.items.in_use == 0)


def test_requests_can_be_told_apart(client: openai.OpenAI) -> None:
    left, right = (client.chat.completions.create(model=BASE, messages=_plain("Hello")) for _ in range(2))
    assert left._request_id
    assert left._request_id != right._request_id
    assert left.id != right.id
