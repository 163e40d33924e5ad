"""Each label of a classification says what is left for it at the card's coverage; without thresholds it says nothing."""

from __future__ import annotations

import httpx
from live_api import data_uri, png_film

from serving.api.classify import _probabilities
from serving.fake import ADAPTER


def test_every_label_carries_its_set(http: httpx.Client) -> None:
    answer = http.post("/v1/classify", json={"images": data_uri(png_film(3)), "model": ADAPTER}).json()
    for one in answer["data"][0]["labels"]:
        p = one["probability"]
        expected = "present" if p > 0.7 else "absent" if p < 0.3 else "uncertain"
        assert one["conformal"] == {"coverage": 0.9, "set": expected}


def test_a_card_without_thresholds_gives_none() -> None:
    value = {"labels": ["a"], "probabilities": [0.2], "logits": [-1.0], "thresholds": [0.5], "conformal_sets": None}
    assert [one.conformal for one in _probabilities(value)] == [None]
