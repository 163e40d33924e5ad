"""Texts: each is read once for its tenant, is kept for no other, and is forgotten when asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serving.messages import Request
from serving.texts import Texts


class Reader:
    """A text tower that says how long a text is, and remembers what it was asked."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        self.read += texts
        return torch.tensor([[float(len(text))] for text in texts])


def ask(texts: Texts, *wanted: str, tenant: str = "a", stores: bool = True) -> dict[str, float]:
    request = Request(1, "zero_shot", tenant=tenant, stores=stores)
    return {text: float(found) for text, found in texts.read([(request, text) for text in wanted]).items()}


def test_a_text_is_read_once_for_its_tenant() -> None:
    reader = Reader()
    texts = Texts(reader, 8)  # type: ignore[arg-type]
    assert ask(texts, "one", "three", "one") == {"one": 3.0, "three": 5.0}
    assert ask(texts, "three", "four") == {"three": 5.0, "four": 4.0}
    assert reader.read == ["one", "three", "four"]
    ask(texts, "one", tenant="b")
    assert reader.read[3:] == ["one"]


def test_what_may_not_be_stored_or_is_to_be_forgotten_is_read_again() -> None:
    reader = Reader()
    texts = Texts(reader, 8)  # type: ignore[arg-type]
    ask(texts, "one", stores=False)
    ask(texts, "one", "two")
    ask(texts, "one", tenant="b")
    texts.forget("a")
    ask(texts, "one", "two")
    ask(texts, "one", tenant="b")
    assert reader.read == ["one", "one", "two", "one", "one", "two"]
