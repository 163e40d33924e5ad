"""Manifests: the three layouts read alike, problems name row and remedy, filters refuse what is unknown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import InvalidRequest, ManifestError
from training.manifests.manifest import load_manifest, parse_where, rows_digest

Write = Callable[..., Path]


def row(number: int, **fields: Any) -> dict[str, Any]:
    """A good row; a field given as `...` is left out."""
    base = {
        "id": f"f{number}",
        "image": f"{number}.png",
        "patient_id": f"p{number}",
        "split": "train",
        "labels": ["mass"],
    }
    return {name: value for name, value in (base | fields).items() if value is not ...}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as JSON lines, with an (empty) file for each image 0..9."""
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(b"")

    def written(*rows: dict[str, Any] | str, name: str = "m.jsonl") -> Path:
        lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    return written


def test_a_row_keeps_what_it_says(write: Write, tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"")
    said = {"text": "A mass.", "mask": "m.png", "tabular": {"crp": 5.0, "icu": None}, "licence": "CC0", "view": "AP"}
    [found] = load_manifest(write(row(1, split="validation", **said)))
    assert (found.id, found.patient_id, found.group, found.split) == ("f1", "p1", "p1", "val")
    assert found.image == tmp_path / "1.png"
    assert found.mask == tmp_path / "m.png"
    assert (found.text, found.tabular, found.licence) == ("A mass.", {"crp": 5.0, "icu": None}, "CC0")
    assert (found.labels, found.is_labelled, found.extra) == (("mass",), True, {"view": "AP"})


def test_csv_reads_as_json_lines_do(write: Write) -> None:
    table = "id,image,patient_id,split,labels,tabular.crp,age\nf1,1.png,p1,train,mass|edema,5,40\nf2,2.png,p2,test,,,\n"
    from_csv = load_manifest(write(table.strip(), name="m.csv"))
    lines = (
        row(1, labels=["mass", "edema"], tabular={"crp": 5.0}, age=40.0),
        row(2, split="test", labels=[], tabular={"crp": None}, age=None),
    )
    from_json = load_manifest(write(*lines))
    assert from_csv.digest == from_json.digest
    assert [one.extra for one in from_csv] == [one.extra for one in from_json]


def test_image_folder_is_accepted_as_it_is(tmp_path: Path) -> None:
    for split, table in (("train", "metadata.jsonl"), ("test", "metadata.csv")):
        folder = tmp_path / split
        folder.mkdir()
        (folder / "a.png").write_bytes(b"")
        line = '{"file_name": "a.png", "text": "clear"}' if table.endswith("jsonl") else "file_name,text\na.png,clear"
        (folder / table).write_text(line + "\n")
    found = load_manifest(tmp_path)
    assert [(one.id, one.split, one.text, one.is_labelled) for one in found] == [
        ("test/a.png", "test", "clear", False),
        ("train/a.png", "train", "clear", False),
    ]
    assert "patient of its own" in found.notes[0]


def test_image_folder_with_one_table_takes_the_split_from_the_path(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(b"")
    lines = [json.dumps({"file_name": f"{split}/a.png", "label": 3}) for split in ("train", "validation")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert [(one.split, one.labels) for one in load_manifest(tmp_path)] == [("train", ("3",)), ("val", ("3",))]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image": "gone.png"}, "row 2: image 'gone.png' is not a file"),
        ({"image": ...}, "row 2: 'image' is missing"),
        ({"mask": "gone.png"}, "row 2: mask 'gone.png' is not a file"),
        ({"id": "f1"}, "row 2: id 'f1' is already on row 1"),
        ({"split": "tset"}, "row 2: unknown split 'tset': write one of train, val, test"),
        (
            {"patient_id": "p1", "split": "test"},
            "row 2: patient_id 'p1' is in test but in train on row 1: put all rows",
        ),
        ({"group": "p1", "split": "test"}, "row 2: group 'p1' is in test but in train on row 1"),
        ({"image": "1.png", "split": "test"}, "in test but in train on row 1"),
        ({"tabular": {"crp": float("nan")}}, "row 2: tabular value 'crp' is NaN: write null"),
        ({"tabular": [1]}, "row 2: 'tabular' must be an object"),
        ({"tabular": {"crp": [1]}}, "row 2: tabular value 'crp' must be a number"),
        ({"age": float("nan")}, "row 2: 'age' is NaN: write null"),
        ({"labels": ["mass", ""]}, "row 2: 'labels' must be a list of words"),
        ({"labels": [["mass"]]}, "row 2: 'labels' must be a list of words"),
    ],
)
def test_a_bad_row_is_named_with_its_remedy(write: Write, fields: dict[str, Any], said: str) -> None:
    assert len(load_manifest(write(row(1), row(2)))) == 2
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(row(1), row(2, **fields)))
    assert said in caught.value.message


def test_lines_that_are_not_rows_are_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="row 2: not valid JSON at column 8"):
        load_manifest(write(row(1), '{"id": nope}'))
    with pytest.raises(ManifestError, match="row 1: not a JSON object"):
        load_manifest(write("[1]"))
    with pytest.raises(ManifestError, match="row 2: it has not as many cells as the header"):
        load_manifest(write("image,split\n1.png,train,more", name="m.csv"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    with pytest.raises(ManifestError, match="not UTF-8"):
        load_manifest(tmp_path / "latin.jsonl")


def test_many_bad_rows_are_counted(write: Write) -> None:
    with pytest.raises(ManifestError, match=r"row 1: .* row 8: .*and 2 more rows"):
        load_manifest(write(*[row(number, image="gone.png") for number in range(10)]))


def test_what_cannot_be_a_manifest_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has no rows"):
        load_manifest(write(""))
    with pytest.raises(ManifestError, match="no manifest at"):
        load_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match=r"neither \.jsonl, \.csv nor \.json"):
        load_manifest(write(row(1), name="m.parquet"))
    with pytest.raises(ManifestError, match=r"holds no metadata\.jsonl"):
        load_manifest(tmp_path)


def test_splits_and_filters(write: Write) -> None:
    rows = [
        row(1, view="AP", orig_size=[128, 128]),
        row(2, view="PA", split="test"),
        row(3, view=None, labels=["edema"]),
    ]
    path = write(*rows)
    found = load_manifest(path)
    assert [one.id for one in found.of("test")] == ["f2"]
    assert found.labels == ("mass", "edema")
    with pytest.raises(ManifestError, match=r"no row in split 'val' \(it has train 2, val 0, test 1\)"):
        found.of("val")
    with pytest.raises(InvalidRequest, match="unknown split 'dev set'"):
        found.of("dev set")
    wanted = {
        "view=AP": ["f1"],
        "view=AP,view=PA": ["f1", "f2"],
        "view=null": ["f3"],
        "orig_size=[128, 128],view=AP": ["f1"],
        "labels=mass,split=test": ["f2"],
    }
    for where, ids in wanted.items():
        assert [one.id for one in load_manifest(path, where)] == ids, where
    assert [one.id for one in load_manifest(path, {"view": "PA"})] == ["f2"]
    with pytest.raises(InvalidRequest, match=r"unknown field 'veiw' in the filter: known are id, image, .*view"):
        load_manifest(path, "veiw=AP")
    with pytest.raises(InvalidRequest, match="no row has view='LL': the values are AP, PA, null"):
        load_manifest(path, "view=LL")
    with pytest.raises(InvalidRequest, match="not of the form field=value"):
        load_manifest(path, "AP")
    with pytest.raises(ManifestError, match=r"no row of m\.jsonl matches"):
        load_manifest(path, "view=AP,labels=edema")


def test_a_leak_outside_the_filter_is_still_an_error(write: Write) -> None:
    leaking = row(2, patient_id="p3", split="test", view="PA"), row(3, view="PA")
    with pytest.raises(ManifestError, match="patient_id 'p3'"):
        load_manifest(write(row(1, view="AP"), *leaking), "view=AP")


def test_where_is_parsed_without_cutting_brackets() -> None:
    assert parse_where("orig_size=[128, 128], view=AP") == {"orig_size": ("[128, 128]",), "view": ("AP",)}
    assert parse_where(["view=AP", "source=a,source=b"]) == {"view": ("AP",), "source": ("a", "b")}
    assert parse_where(None) == {}


def test_digest_follows_what_a_model_would_learn(write: Write) -> None:
    plain = rows_digest(load_manifest(write(row(1), row(2))))
    assert rows_digest(load_manifest(write(row(1), row(2)))) == plain
    assert rows_digest(load_manifest(write(row(1), row(2, labels=["edema"])))) != plain
    assert rows_digest(load_manifest(write(row(2), row(1)))) != plain


def test_the_real_manifest(chest_data: Path) -> None:
    found = load_manifest(chest_data / "manifest.jsonl")
    assert dict(found.counts) == {"train": 12732, "val": 1282, "test": 1885}
    small = load_manifest(chest_data / "manifest.jsonl", "source=nih_cxr14,orig_size=[128, 128],split=test,view=AP")
    assert small.rows
    assert all(one.extra["orig_size"] == [128, 128] and one.extra["view"] == "AP" for one in small)
