"""Whatever a caller sends is either a checked body or one InvalidRequest in our words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import InvalidRequest
from serving.schemas.adapters import LoadBody, VllmLoadBody
from serving.schemas.analyze import AnalyzeBody
from serving.schemas.anomaly import AnomalyBody
from serving.schemas.chat import ChatBody
from serving.schemas.classify import ClassifyBody
from serving.schemas.embeddings import EmbeddingsBody
from serving.schemas.fuse import FuseBody
from serving.schemas.parsing import Body, parse_fields, parse_json
from serving.schemas.segment import SegmentBody
from serving.schemas.zero_shot import HuggingFaceBody, ZeroShotBody

BODIES: tuple[type[Body], ...] = (
    ZeroShotBody,
    HuggingFaceBody,
    ClassifyBody,
    SegmentBody,
    AnomalyBody,
    FuseBody,
    AnalyzeBody,
    LoadBody,
    VllmLoadBody,
    EmbeddingsBody,
    ChatBody,
)
_INNER = (
    "role",
    "content",
    "type",
    "text",
    "image_url",
    "url",
    "data",
    "dicom",
    "n",
    "tools",
    "candidate_labels",
    "row",
    "column",
    "top",
    "left",
    "bottom",
    "right",
)
NAMES = sorted({*_INNER, *(name for body in BODIES for name in body.model_fields)})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    ["user", "assistant", "text", "image_url", "dicom", "data:image/png;base64,AA==", "{}", "softmax", "base64", "hf"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), VALUES, max_size=8)
LIBRARY_WORDS = ("pydantic", "Input should", "validation error", "Traceback", "ctx")


@pytest.mark.parametrize("model", BODIES, ids=lambda model: model.__name__)
@settings(max_examples=60, deadline=None)
@given(content=OBJECTS)
def test_anything_is_a_body_or_a_sentence(model: type[Body], content: dict[str, Any]) -> None:
    text = json.dumps(content)
    for refusal in (_refusal(parse_fields, model, content), _refusal(parse_json, model, text.encode())):
        assert refusal.endswith(".")
        assert not any(word in refusal for word in LIBRARY_WORDS if word not in text)


def _refusal(parse: Callable[[type[Body], Any], Body], model: type[Body], content: Any) -> str:
    """The sentence of the refusal, "." for a body that is accepted; any other error is let through."""
    try:
        parse(model, content)
    except InvalidRequest as refused:
        return refused.message
    return "."


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=40))
def test_bytes_that_are_not_json_are_a_sentence(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_json(ZeroShotBody, data)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"labels": "a"}, None),
        ({}, "Field 'labels' is required."),
        ({"labels": ["a"], "slice_index": "x"}, "Field 'slice_index' must be a whole number."),
        ({"labels": ["a"], "slice_index": 1.5}, "Field 'slice_index' must be a whole number."),
        ({"labels": ["a"], "scoring": "best"}, "Field 'scoring' must be one of 'softmax', 'sigmoid' or 'pairwise'."),
        ({"labels": ["a", 3]}, "Field 'labels[1]' must be a string."),
        ({"labels": {"a": 1}}, "Field 'labels' must be a list."),
        ({"labels": ["a"], "include_film": "perhaps"}, "Field 'include_film' must be true or false."),
        ({"labels": ["a"], "images": [7]}, "Field 'images[0]' must be an object."),
        ({"labels": ["a"], "window": [1]}, "Field 'window[1]' is required."),
        ({"labels": ["a"], "window": [1, float("inf")]}, "Field 'window[1]' must be a finite number."),
    ],
)
def test_sentences(content: dict[str, Any], sentence: str | None) -> None:
    if sentence is None:
        assert parse_fields(ZeroShotBody, content).labels == ["a"]
        return
    with pytest.raises(InvalidRequest) as refused:
        parse_fields(ZeroShotBody, content)
    assert refused.value.message == sentence
