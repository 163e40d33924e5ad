"""An answer that the film did not matter for says so; one that it mattered for does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from serving.api.chat import _extras
from serving.api.conversation import Conversation
from serving.api.service import Asked
from serving.schemas.chat import INDEPENDENT
from serving.schemas.common import Timings


@pytest.mark.parametrize(("reliance", "is_said"), [(0.0, True), (0.099, True), (0.1, False), (0.9, False), (None, False)])
def test_an_answer_says_when_the_film_did_not_matter(reliance: float | None, is_said: bool) -> None:
    conversation = cast(Conversation, SimpleNamespace(notes=("two films",), film=None, include_film=False))
    evidence: dict[str, Any] = {"assessed": True, "looks_like": "", "findings": [], "heatmap": None, "reliance": reliance}
    notes = _extras(conversation, Asked({"evidence": evidence}, None, Timings())).notes
    assert notes == ["two films", *([INDEPENDENT] if is_said else [])]
