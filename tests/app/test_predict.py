"""`vesalius predict` over a FakeGateway: every task as text and as JSON; pictures are written where they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.cli import main
from app.predict_command import conformal_lines, finding_line
from serving.api.app import create_app
from serving.fake import ADAPTER, BASE, DETECTOR, FUSER, SEGMENTER, FakeGateway
from tests.serving.live_api import png_film, serving


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(create_app(FakeGateway())) as found:
        yield found


@pytest.fixture
def films(tmp_path: Path) -> list[str]:
    for seed in (1, 2):
        (tmp_path / f"film{seed}.png").write_bytes(png_film(seed))
    return [str(tmp_path / f"film{seed}.png") for seed in (1, 2)]


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["predict", *arguments]) == code
    return capsys.readouterr().out


def test_classification_names_the_set(address: str, films: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, ADAPTER, *films, "--server", address)
    assert "film1.png" in text
    assert "film2.png" in text
    assert "cardiomegaly" in text
    assert "above its threshold of 0.500" in text
    assert "cannot be ruled out" not in text
    assert "at 90% coverage, un" in text


def test_few_labels_are_named_and_many_counted() -> None:
    def labels(*sets: str) -> list[dict[str, Any]]:
        return [{"label": f"l{k}", "conformal": {"coverage": 0.9, "set": one}} for k, one in enumerate(sets)]

    assert conformal_lines([{"label": "a", "conformal": None}]) == []
    assert conformal_lines(labels("absent", "present", *["uncertain"] * 11)) == [
        "at 90% coverage, unlike films without it: l1",
        "at 90% coverage, unlike films with it: l0",
        "at 90% coverage, undecided: 11 of 13 labels",
    ]


def test_a_finding_above_a_low_threshold_is_not_called_more_than_doubtful() -> None:
    assert finding_line("effusion", 0.06, 0.03).endswith(" doubtful: above its threshold of 0.030")
    assert finding_line("effusion", 0.95, 0.03).endswith("# above its threshold of 0.030")
    assert "threshold" not in finding_line("effusion", 0.02, 0.03) + finding_line("effusion", 0.9, None)


def test_masks_are_written_in_the_films_size(
    address: str, films: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    options = ("--server", address, "--out", str(out), "--point", "10,20", "--label", "left lung", "--label", "heart")
    text = told(capsys, SEGMENTER, *films, *options)
    assert "nothing here" in text
    written = sorted(path.name for path in out.iterdir())
    assert written == [f"film{n}.{SEGMENTER}.{label}.png" for n in (1, 2) for label in ("heart", "left-lung")]
    mask = np.asarray(Image.open(out / f"film1.{SEGMENTER}.left-lung.png"))
    assert mask.shape == (48, 48)
    assert mask[10, 20]
    answer: Any = json.loads(told(capsys, SEGMENTER, films[0], "--server", address, "--json"))
    assert answer["data"][0]["masks"][0]["rle"]["size"] == [48, 48]


def test_a_heat_map_is_written_with_16_bits(
    address: str, films: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, DETECTOR, films[0], "--server", address, "--out", str(tmp_path))
    assert "p = 0." in text
    assert "among 200 normal films" in text
    assert np.asarray(Image.open(tmp_path / f"film1.{DETECTOR}.heat.png")).max() == 65535


def test_fusion_takes_all_films_as_one_patients(address: str, films: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--server", address, "--text", "Fever.", "--value", "crp=12.5", "--value", "ldh=-inf")
    assert "from film, note, laboratory" in told(capsys, FUSER, *films, *options)
    answer: Any = json.loads(told(capsys, FUSER, "--server", address, "--value", "crp=3", "--json"))
    assert answer["result"]["present"] == ["laboratory"]


def test_what_cannot_be_is_one_sentence(address: str, films: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, BASE, films[0], "--server", address, code=2)
    told(capsys, SEGMENTER, films[0], "--server", address, "--point", "1,2,3", code=2)
    told(capsys, FUSER, "--server", address, "--value", "crp", code=2)
    told(capsys, ADAPTER, "--server", address, code=2)


def test_a_film_in_the_adapters_place_is_told_the_order(
    address: str, films: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", films[0], films[1], "--server", address]) == 2
    assert "predict ADAPTER FILE" in capsys.readouterr().err
