"""`vesalius data check`: each problem is named with its row and the remedy; a good manifest is said to be good."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.cli import main
from foundation.errors import InvalidRequest
from training.manifests.check import check_manifest
from training.manifests.manifest import load_manifest

Write = Callable[..., Path]


def picture(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Four good rows, one changed: fields of row 2, or what `spoil` does to the files."""

    def written(fields: dict[str, Any] | None = None, spoil: Callable[[Path], object] | None = None) -> Path:
        rows = []
        for number, split in enumerate(("train", "train", "val", "test")):
            picture(tmp_path / f"{number}.png", number)
            rows.append(
                {"id": f"f{number}", "image": f"{number}.png", "patient_id": f"p{number}", "split": split, "labels": ["mass"]}
            )
        picture(tmp_path / "mask.png", 9)
        rows[1]["mask"] = "mask.png"
        rows[1] |= fields or {}
        if spoil:
            spoil(tmp_path)
        (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "m.jsonl"

    return written


def test_a_good_manifest_has_no_problem(write: Write) -> None:
    report = check_manifest(write({"source": "here"}))
    assert report.problems == ()
    assert (report.films, report.patients) == (4, 4)
    assert report.counts["label"] == {"mass": {"train": 2, "val": 1, "test": 1}}
    assert report.counts["source"]["here"]["train"] == 1
    assert any("calibration will be poor" in note for note in report.notes)
    assert "No problem found." in report.as_text()


@pytest.mark.parametrize(
    ("fields", "spoil", "row", "said"),
    [
        ({"image": "gone.png"}, None, 2, "image 'gone.png' is not a file"),
        ({"id": "f0"}, None, 2, "id 'f0' is already on row 1: give each row its own `id`"),
        ({"patient_id": "p2"}, None, 3, "patient_id 'p2' is in val but in train on row 2: put all rows"),
        ({"age": float("nan")}, None, 2, "'age' is NaN: write null"),
        ({"mask": "gone.png"}, None, 2, "mask 'gone.png' is not a file"),
        ({"mask_lung": "gone.png"}, None, 2, "mask_lung 'gone.png' is not a file beside the manifest"),
        ({}, lambda at: picture(at / "mask.png", 1, (10, 20)), 2, "mask has 10 x 20 pixels, the film 24 x 20: store the mask"),
        ({}, lambda at: (at / "mask.png").write_bytes(b"no"), 2, "mask 'mask.png' cannot be read"),
        ({}, lambda at: (at / "1.png").write_bytes(b""), 2, "image '1.png' cannot be read"),
        ({}, lambda at: picture(at / "3.png", 1), 4, "byte for byte the one of row 2, but in test and not in train: cut one"),
        ({}, lambda at: picture(at / "1.png", 0), 2, "byte for byte the one of row 1, but of another patient: correct"),
    ],
)
def test_each_problem_names_row_and_remedy(
    write: Write, fields: dict[str, Any], spoil: Callable[[Path], object] | None, row: int, said: str
) -> None:
    problems = check_manifest(write(fields, spoil)).problems
    assert [problem.row for problem in problems] == [row], problems
    assert said in problems[0].sentence


def test_an_empty_split_is_a_problem_of_the_whole(write: Write) -> None:
    problems = check_manifest(write(), "split=train").problems
    assert [(problem.row, problem.sentence[:26]) for problem in problems] == [(0, "the split 'val' is empty: ")]
    with pytest.raises(InvalidRequest, match="no row has source="):
        check_manifest(write({"source": "here"}), "source=nowhere")


def test_the_command_prints_and_leaves_with_two(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "--manifest", str(write())]) == 0
    assert "films" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["data", "check", "--json", "--manifest", str(write({"image": "gone.png"}))])
    said = json.loads(capsys.readouterr().out)
    assert left.value.code == 2
    assert not said["is_fit"]
    assert said["problems"][0]["row"] == 2


def test_columns_of_other_names(write: Write, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in write().read_text().splitlines()]
    (tmp_path / "o.jsonl").write_text(
        "\n".join(json.dumps({"path" if k == "image" else k: v for k, v in r.items()}) for r in rows)
    )
    assert len(load_manifest(tmp_path / "o.jsonl", columns={"image": "path"})) == 4
    assert check_manifest(tmp_path / "o.jsonl", columns={"image": "path"}).problems == ()
    assert main(["data", "check", "--manifest", str(tmp_path / "o.jsonl"), "--column", "image=path"]) == 0
    with pytest.raises(InvalidRequest, match="'imago' is not a field of a manifest"):
        load_manifest(tmp_path / "o.jsonl", columns={"imago": "path"})
    assert main(["data", "check", "--manifest", str(tmp_path / "o.jsonl"), "--column", "image"]) == 2
