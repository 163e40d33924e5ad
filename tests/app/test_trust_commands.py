"""`vesalius keys` and `vesalius audit` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from app.cli import main
from foundation.readers import read_film
from serving.audit import AuditLog
from serving.keys import KeyFile, KeyRing


def test_keys_are_added_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path), "--json"]
    assert main(["keys", "add", "ward-3", "--scope", "infer", "--per-minute", "30", *home]) == 0
    made = json.loads(capsys.readouterr().out)
    ring = KeyRing(KeyFile(tmp_path / "keys.json"))
    found = ring.find(made["key"])
    assert found is not None
    assert (found.name, found.scopes, found.per_minute) == ("ward-3", ("infer",), 30)
    assert main(["keys", "list", *home]) == 0
    text = capsys.readouterr().out
    assert made["key"] not in text
    assert found.digest not in text
    assert json.loads(text)[0]["id"] == made["id"]
    assert main(["keys", "revoke", "ward-3", *home]) == 0
    assert ring.find(made["key"]) is None
    assert main(["keys", "revoke", "ward-3", *home]) == 2
    assert "no active key" in capsys.readouterr().err


def test_a_new_key_is_shown_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "ward-3", "--home", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("vsl-")
    assert "keep it now" in shown
    assert main(["keys", "add", "--home", str(tmp_path)]) == 2


def test_verify_says_whole_or_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    assert main(["audit", "verify", *home]) == 2
    log = AuditLog(tmp_path)
    for number in range(3):
        log.append({"number": number})
    assert main(["audit", "verify", *home, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lines"] == 3
    assert main(["audit", "verify", *home, "--expect", found["mark"]]) == 0
    assert main(["audit", "verify", *home, "--expect", "0" * 64]) == 2
    log.path.write_bytes(log.path.read_bytes().replace(b'"number":1', b'"number":7'))
    capsys.readouterr()
    assert main(["audit", "verify", *home]) == 2
    assert "Line 2 was changed" in capsys.readouterr().err


def test_tls_needs_both_files_and_they_must_be_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pem").write_text("not a certificate")
    assert main(["serve", "--tls-certificate", str(tmp_path / "x.pem")]) == 2
    assert "together" in capsys.readouterr().err
    assert main(["serve", "--tls-certificate", str(tmp_path / "x.pem"), "--tls-key", str(tmp_path / "none.pem")]) == 2
    assert "not a certificate" in capsys.readouterr().err


def test_a_folder_of_films_is_deidentified_under_new_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    films = {name: Path(str(get_testdata_file(name, download=False))) for name in ("CT_small.dcm", "MR_small.dcm")}
    for name, path in films.items():
        (source / f"JANEDOE-{name}").write_bytes(path.read_bytes())
    (source / "notes.txt").write_text("not a film")
    options = ["deidentify", str(source), str(out), "--key-file", str(tmp_path / "secret.key"), "--json"]
    assert main(options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == 2
    written = sorted(out.iterdir())
    assert [path.suffix for path in written] == [".dcm", ".dcm"]
    assert not any("JANEDOE" in path.name for path in written)
    digests = {read_film(path.read_bytes()).digest for path in written}
    assert digests == {read_film(path.read_bytes()).digest for path in films.values()}
    assert main(options) == 2  # the same key gives the same names, and nothing is written over
    assert "is there already" in capsys.readouterr().err
    assert main(["deidentify", str(tmp_path / "none"), str(out)]) == 2
