"""Questions made from labels: true to them, as often yes as asked for, of films chosen so that rare labels are there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from foundation.errors import ManifestError
from foundation.questions import interpret_question
from training.manifests.label_questions import choose_films, label_questions
from training.manifests.row import Row


def row(number: int, *labels: str, view: str | None = "PA", sex: str | None = "F") -> Row:
    said, name = {"view": view, "sex": sex}, str(number)
    return Row(number, name, Path(f"{name}.png"), "train", name, name, labels, bool(labels), extra=said)


ROWS = (
    *(row(number, "normal", view=("PA", "AP")[number % 2], sex=("F", "M")[number % 2]) for number in range(40)),
    *(row(number, "effusion", "infiltration") for number in range(40, 60)),
    *(row(number, "cardiomegaly", view=None, sex=None) for number in range(60, 64)),
)


def test_rare_labels_are_chosen_as_often_as_common_ones() -> None:
    chosen = choose_films(ROWS, 15, seed=0)
    assert len(chosen) == 15
    assert list(chosen) == [one for one in ROWS if one in chosen]
    count = Counter(label for one in chosen for label in one.labels)
    assert count["cardiomegaly"] == 4
    assert count["normal"] >= 3
    assert choose_films(ROWS, 15, seed=0) == chosen != choose_films(ROWS, 15, seed=1)
    assert len(choose_films(ROWS, 1000, seed=0)) == len(ROWS)
    assert choose_films(ROWS, 0, seed=0) == ()


def test_answers_are_what_the_labels_say() -> None:
    made = label_questions(ROWS, 3000, seed=0)
    assert len(made) == 3000
    told: Counter[str] = Counter()
    for pair in made:
        text, labels = pair.question, pair.film.labels
        if pair.truth in ("pa", "ap"):
            assert pair.truth == str(pair.film.get("view")).lower()
        elif pair.truth in ("male", "female"):
            assert pair.truth[0] == str(pair.film.get("sex")).lower()
        elif " PA " in text or " AP " in text or "anterior" in text:
            assert (pair.truth == "yes") is (("PA" in text) == (pair.film.get("view") == "PA"))
            told["view"] += 1
        else:
            intent = interpret_question(text)
            name = intent.finding or "normal"
            holds = name in labels
            if name == "normal":
                is_denied = not intent.asks_absence
            else:
                is_denied = intent.asks_absence or any(word in text for word in ("sharp", "preserved", "normal size limits"))
            assert (pair.truth == "yes") is (holds != is_denied), text
            told[name] += 1
    assert set(told) == {"view", "normal", "effusion", "cardiomegaly", "infiltration"}  # what no film has is not asked


def test_yes_comes_in_the_share_that_is_asked_for() -> None:
    for present in (0.2, 0.5):
        made = label_questions(ROWS, 4000, seed=1, present=present)
        about = [pair for pair in made if "heart enlarged" in pair.question]
        share = sum(pair.truth == "yes" for pair in about) / len(about)
        assert share == pytest.approx(present, abs=0.08)


def test_films_that_say_nothing_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"made\.films = 0"):
        label_questions([row(0, view=None, sex=None)], 10, seed=0)
