"""The command line as a contract: what `--help` lists, what `--json` prints, how errors end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import build_parser, main

COMMANDS = (
    "up",
    "serve",
    "ask",
    "zero-shot",
    "predict",
    "pretrain",
    "finetune",
    "evaluate",
    "adapters",
    "checkpoint",
    "export",
    "data",
    "keys",
    "audit",
    "deidentify",
)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["--help"])
    assert stop.value.code == 0
    assert set(re.findall(r"^ {4}([a-z-]+)", capsys.readouterr().out, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_as_json_when_asked(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([name, "--help"])
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["serve", "up"])
def test_what_serves_can_have_several_fronts(name: str) -> None:
    assert build_parser().parse_args([name, "--workers", "3"]).workers == 3
    assert build_parser().parse_args([name]).workers == 1


def test_help_imports_no_torch() -> None:
    code = "import sys, app.cli\ntry: app.cli.main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=root)


def test_a_missing_film_is_one_sentence_and_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(tmp_path / "none.dcm"), "Is it normal?", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "film_unreadable"
    assert "Traceback" not in captured.err
    assert "none.dcm" in captured.err


def test_an_unknown_recipe_names_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "nowhere", "--out", str(tmp_path)]) == 2
    assert "bundled" in capsys.readouterr().err


def test_a_named_server_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = tmp_path / "film.png"
    film.write_bytes(b"\x89PNG")
    assert main(["ask", str(film), "Is it normal?", "--server", "http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_adapters_are_listed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "list", "--adapters", str(tmp_path), "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


def test_a_broken_adapter_is_listed_as_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{")
    assert main(["adapters", "list", "--adapters", str(tmp_path)]) == 0
    assert "broken                   refused: card.json is not valid JSON" in capsys.readouterr().out
    assert main(["adapters", "list", "--adapters", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert next(one for one in listed if one["name"] == "broken")["refused"].startswith("card.json")
