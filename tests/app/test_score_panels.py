"""Own labels and findings over a live API: what the server says is what the bars say."""

from __future__ import annotations

import re

import pytest

from app import words
from app.film import OpenFilm
from app.panels.findings import FindingsPanel, notes_of
from app.panels.zero_shot import ZeroShotPanel
from foundation.errors import Overloaded, VesaliusError
from serving.fake import ADAPTER, FINDINGS
from serving.schemas.classify import ClassifyItem
from tests.app.conftest import Served
from tests.serving.live_api import color_picture, png_film

FILM = OpenFilm.read(png_film(3), "film.png")
PHOTO = OpenFilm.read(color_picture(), "photo.png")


def numbers(card: str) -> list[str]:
    return re.findall(r'class="number">([^<]*)<', card)


@pytest.mark.parametrize("scoring", list(words.SCORINGS))
def test_own_labels_are_scored_in_their_order(served: Served, scoring: str) -> None:
    card = ZeroShotPanel(served.client).score(FILM, " effusion\n\n<b>odd</b> \neffusion\n", scoring)
    assert served.gateway.requests[-1].options["labels"] == ["effusion", "<b>odd</b>"]
    item = served.client.zero_shot([FILM.picture()], ["effusion", "<b>odd</b>"], scoring=scoring).data[0]  # type: ignore[arg-type]
    assert numbers(card) == [f"{one.score:.2f}" for one in item.scores]
    assert "<b>odd" not in card


def test_findings_carry_the_adapters_probabilities_and_thresholds(served: Served) -> None:
    panel = FindingsPanel(served.client)
    card = panel.predict(FILM, ADAPTER)
    item = served.client.classify([FILM.picture()], ADAPTER).data[0]
    assert numbers(card) == [f"{one.probability:.2f}" for one in sorted(item.labels, key=lambda one: -one.probability)]
    assert card.count('class="tick"') == len(FINDINGS)


def test_a_refused_film_has_no_numbers(served: Served) -> None:
    for card in (
        ZeroShotPanel(served.client).score(PHOTO, "effusion", "pairwise"),
        FindingsPanel(served.client).predict(PHOTO, ADAPTER),
    ):
        assert numbers(card) == []
        assert "Not assessed: this looks like a photograph." in card


def test_what_is_missing_is_said(served: Served) -> None:
    zero_shot, findings = ZeroShotPanel(served.client), FindingsPanel(served.client)
    for asking, sentence in (
        (lambda: zero_shot.score(None, "effusion", "softmax"), words.NO_FILM),
        (lambda: zero_shot.score(FILM, " \n", "softmax"), words.NO_LABELS),
        (lambda: findings.predict(None, ADAPTER), words.NO_FILM),
        (lambda: findings.predict(FILM, None), words.NO_CHOICE),
    ):
        with pytest.raises(VesaliusError) as refused:
            asking()
        assert refused.value.message == sentence


def test_a_busy_server_is_said(served: Served) -> None:
    served.gateway.error = ("overloaded", "The server is busy.")
    with pytest.raises(Overloaded, match="busy"):
        ZeroShotPanel(served.client).score(FILM, "effusion", "softmax")


LABELS = ("normal", "bacterial", "viral")


def item_of(probabilities: tuple[float, ...], **more: object) -> ClassifyItem:
    verdict = {"coverage": 0.9, "set": "uncertain"}
    labels = [
        {"label": label, "probability": chance, "logit": 0.0, "threshold": 0.5, "conformal": verdict}
        for label, chance in zip(LABELS, probabilities, strict=True)
    ]
    return ClassifyItem.model_validate({"index": 0, "labels": labels, **more})


def test_classes_that_exclude_one_another_are_told_as_such() -> None:
    item = item_of((0.7, 0.2, 0.1), conformal={"coverage": 0.9, "labels": ["normal", "viral"]})
    assert notes_of(item) == [words.MULTI_CLASS, words.ONE_OF.format(coverage="90 %", labels="normal, viral")]
    nothing = item_of((0.7, 0.2, 0.1), conformal={"coverage": 0.9, "labels": []})
    assert notes_of(nothing) == [words.MULTI_CLASS, words.NONE_OF.format(coverage="90 %")]


def test_what_cannot_be_told_is_named_and_normal_is_the_absence_of_findings() -> None:
    notes = notes_of(item_of((0.7, 0.2, 0.6), normal=0.1))
    assert notes[:2] == [words.CALIBRATED, words.NORMAL.format(value="0.10")]
    assert notes[2] == words.CANNOT_TELL.format(coverage="90 %", labels=", ".join(LABELS))
