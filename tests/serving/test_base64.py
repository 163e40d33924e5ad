"""Base64 of films: the quick decoder takes what the plain one takes, and nothing else."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from serving.api.films import decoded


def found(decode: Callable[[str], bytes], text: str) -> bytes | None:
    """None where it is refused."""
    try:
        return decode(text)
    except ValueError:
        return None


@pytest.mark.parametrize(("length", "alphabet"), [(3, "Af/-=\n"), (4, "AB+/-_= \n\u00e9\ud800"), (8, "Af/=")])
def test_every_short_text_is_taken_or_refused_alike(length: int, alphabet: str) -> None:
    taken = 0
    for letters in itertools.product(alphabet, repeat=length):
        text = "".join(letters)
        truth = found(lambda text: base64.b64decode(text, validate=True), text)
        assert found(decoded, text) == truth, repr(text)
        taken += truth is not None
    assert length == 3 or taken > 10


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100_000, 100_001, 100_002])
def test_what_was_encoded_comes_back(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert decoded(base64.b64encode(data).decode()) == data
