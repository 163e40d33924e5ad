"""Questions and answers from both formats become the same rows; what is not whole is refused by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foundation.errors import ManifestError
from foundation.prompt import Turn
from training.manifests.manifest import load_manifest
from training.manifests.qa import has_questions, read_llava, read_questions
from training.manifests.tables import Problems


def film(folder: Path, name: str) -> str:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / name)
    return name


def manifest(folder: Path, *qa: Any) -> Path:
    rows = [{"image": film(folder, f"{number}.png"), "qa": one} for number, one in enumerate(qa)]
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def llava(folder: Path, *entries: Any) -> Path:
    path = folder / "llava.json"
    path.write_text(json.dumps(list(entries)))
    return path


def said(*words: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": one} for place, one in enumerate(words)]


def test_a_manifests_pairs(tmp_path: Path) -> None:
    pairs = [
        {"question": "Is there air?", "answer": "Yes", "answer_type": "CLOSED", "question_type": "PRES, POS"},
        {"question": "PA or AP?", "answer": "PA", "answer_type": "closed"},
        {"question": "Where?", "answer": 2},
    ]
    rows = load_manifest(manifest(tmp_path, pairs, None)).rows
    assert [has_questions(row) for row in rows] == [True, False]
    first, choice, last = read_questions(rows)
    assert (first.truth, first.is_closed, first.is_yes_no, first.kind) == ("yes", True, True, "PRES")
    assert (choice.truth, choice.is_closed, choice.is_yes_no, choice.kind) == ("pa", True, False, "OTHER")
    assert (last.answer, last.is_closed) == ("2", False)
    assert first.film is rows[0]


@pytest.mark.parametrize(
    ("qa", "words"),
    [
        ([{"question": "Is it?"}], r"row 1: qa\[0\] has no 'answer'"),
        ([{"question": " ", "answer": "no"}], r"row 1: qa\[0\] has no 'question'"),
        ([{"question": "Is it?", "answer": "no"}, "x"], r"row 1: qa\[1\] is no object"),
        ([{"question": "Is it?", "answer": "no", "answer_type": "MAYBE"}], r"qa\[0\] has the answer_type 'MAYBE'"),
        ({"question": "Is it?"}, "row 1: 'qa' must be a list"),
    ],
)
def test_what_is_not_whole_is_named(tmp_path: Path, qa: Any, words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        read_questions(load_manifest(manifest(tmp_path, qa)).rows)


def test_llava_conversations(tmp_path: Path) -> None:
    entry = {"id": 7, "image": film(tmp_path, "a.png"), "split": "val", "licence_class": "permissive"}
    spoken = said("<image>\nIs there air?", "Yes.", "Where is it?\n<image>", "On the right.")
    (row,) = load_manifest(llava(tmp_path, {**entry, "conversations": spoken})).rows
    assert (row.id, row.split, row.licence_class, row.number) == ("7", "val", "permissive", 1)
    first, second = read_questions([row])
    assert (first.question, first.is_closed, first.earlier) == ("Is there air?", True, ())
    assert second.turns == (Turn("user", "Is there air?"), Turn("assistant", "Yes."), Turn("user", "Where is it?"))
    assert not second.is_closed


def test_llavas_faults_are_named_by_entry(tmp_path: Path) -> None:
    good = {"image": film(tmp_path, "a.png"), "conversations": said("Is it?", "No.")}
    odd = {"image": film(tmp_path, "b.png"), "conversations": said("Is it?")}
    with pytest.raises(ManifestError, match="row 2: its conversation must alternate"):
        load_manifest(llava(tmp_path, good, odd))
    with pytest.raises(ManifestError, match="row 1: has no list 'conversations'"):
        load_manifest(llava(tmp_path, {"image": "a.png"}))
    with pytest.raises(ManifestError, match=r"row 2: image 'gone.png' is not a file"):
        load_manifest(llava(tmp_path, good, {**good, "image": "gone.png"}))
    (tmp_path / "llava.json").write_text("{}")
    with pytest.raises(ManifestError, match="is not COCO's format"):  # an object is read as COCO's annotations
        load_manifest(tmp_path / "llava.json")
    with pytest.raises(ManifestError, match="is no list: LLaVA's format is"):
        list(read_llava(tmp_path / "llava.json", Problems(tmp_path / "llava.json")))
    (tmp_path / "llava.json").write_text("[\n{]")
    with pytest.raises(ManifestError, match="not valid JSON at line 2"):
        load_manifest(tmp_path / "llava.json")
