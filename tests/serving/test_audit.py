"""The audit log shows every change made to it, survives a killed writer, and names no one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.errors import InvalidRequest
from serving.audit import AuditError, AuditLog

Change = Callable[[list[bytes]], list[bytes]]
ENTRIES = 6


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    made = AuditLog(tmp_path)
    for number in range(ENTRIES):
        made.append({"request": f"req-{number}", "operation": "zero_shot", "status": 200})
    return made


def change(log: AuditLog, how: Change) -> None:
    log.path.write_bytes(b"".join(how(log.path.read_bytes().splitlines(keepends=True))))


def test_a_log_left_alone_is_whole_and_private(log: AuditLog) -> None:
    verdict = log.verify()
    assert verdict.is_whole
    assert verdict.head.lines == ENTRIES
    assert verdict.head.end == log.path.stat().st_size
    for path in log.path.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path.name
    assert [json.loads(line)["n"] for line in log.path.read_bytes().splitlines()] == list(range(1, ENTRIES + 1))


CHANGES: dict[str, tuple[Change, str]] = {
    "a changed value": (lambda lines: [*lines[:2], lines[2].replace(b"zero_shot", b"embedding"), *lines[3:]], "Line 3 was"),
    "a changed time": (lambda lines: [lines[0].replace(b'"at":"20', b'"at":"19'), *lines[1:]], "Line 1 was"),
    "a space more": (lambda lines: [lines[0].replace(b'"n":1', b'"n": 1'), *lines[1:]], "Line 1 was"),
    "a line removed": (lambda lines: [*lines[:2], *lines[3:]], "Line 3 was"),
    "the first removed": (lambda lines: lines[1:], "Line 1 was"),
    "two swapped": (lambda lines: [lines[1], lines[0], *lines[2:]], "Line 1 was"),
    "a line twice": (lambda lines: [*lines, lines[-1]], f"Line {ENTRIES + 1} was"),
    "the last removed": (lambda lines: lines[:-1], "cut"),
    "the last cut": (lambda lines: [*lines[:-1], lines[-1][:-9]], f"Line {ENTRIES} was"),
    "only its newline": (lambda lines: [*lines[:-1], lines[-1][:-1]], f"Line {ENTRIES} was"),
    "all removed": (lambda lines: [], "cut"),
    "nonsense": (lambda lines: [b"[]\n", *lines[1:]], "Line 1 was"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_found_and_the_line_named(log: AuditLog, name: str) -> None:
    how, said = CHANGES[name]
    change(log, how)
    verdict = log.verify()
    assert not verdict.is_whole
    assert said in verdict.problem


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_stays_unseen(log: AuditLog, place: int, bit: int) -> None:
    whole = log.path.read_bytes()
    place %= len(whole)
    log.path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
    try:
        assert not log.verify().is_whole
    finally:
        log.path.write_bytes(whole)


@pytest.mark.parametrize("head", [b"", b"{}", b"[]", b"null"])
def test_a_head_that_is_gone_or_made_up_is_found_and_stops_the_writer(log: AuditLog, head: bytes) -> None:
    log.path.with_suffix(".head").write_bytes(head)
    assert "head" in log.verify().problem
    with pytest.raises(AuditError):
        log.append({"status": 200})


def test_a_head_moved_back_with_its_number_changed_is_found(log: AuditLog) -> None:
    head = log.path.with_suffix(".head")
    plain = json.loads(head.read_text())
    head.write_text(json.dumps({**plain, "lines": plain["lines"] - 1}))
    change(log, lambda lines: lines[:-1])
    assert not log.verify().is_whole


def test_a_log_and_head_put_back_together_are_found_by_a_noted_mark(log: AuditLog) -> None:
    head = log.path.with_suffix(".head")
    older = log.path.read_bytes(), head.read_bytes()
    log.append({"operation": "to be hidden"})
    noted = log.verify().head.mark
    log.append({"operation": "later"})
    assert log.verify(noted).is_whole
    log.path.write_bytes(older[0])
    head.write_bytes(older[1])
    assert log.verify().is_whole  # nothing on this machine could tell
    assert "noted" in log.verify(noted).problem


def test_another_servers_secret_makes_another_chain(log: AuditLog, tmp_path: Path) -> None:
    other = AuditLog(tmp_path / "other")
    other.path.write_bytes(log.path.read_bytes())
    other.path.with_suffix(".head").write_bytes(log.path.with_suffix(".head").read_bytes())
    assert not other.verify().is_whole
    assert other.study("a" * 64) != log.study("a" * 64) == log.study("a" * 64)


def test_a_writer_killed_between_line_and_head_loses_nothing(log: AuditLog) -> None:
    head = log.path.with_suffix(".head")
    before = head.read_bytes()
    log.append({"operation": "the line was written, the head was not"})
    head.write_bytes(before)
    assert log.verify().is_whole
    log.append({"operation": "next"})
    verdict = log.verify()
    assert verdict.is_whole
    assert verdict.head.lines == ENTRIES + 2


def test_half_a_line_of_a_killed_writer_is_taken_off(log: AuditLog) -> None:
    with log.path.open("ab") as file:
        file.write(b'{"n":7,"at":"20')
    log.append({"operation": "next"})
    assert log.verify().is_whole
    assert log.verify().head.lines == ENTRIES + 1


def test_a_strangers_line_or_a_cut_stops_the_writer(log: AuditLog) -> None:
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"n":7}\n')
    with pytest.raises(AuditError, match="did not write"):
        log.append({})
    log.path.write_bytes(whole[:-5])
    with pytest.raises(AuditError, match="cut"):
        log.append({})


_WRITER = """
import sys
from serving.audit import AuditLog
log = AuditLog(sys.argv[1])
for number in range(60):
    log.append({"writer": sys.argv[2], "number": number})
"""


def test_several_servers_share_one_log(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), name], cwd=root) for name in "abc"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    log = AuditLog(tmp_path)
    assert log.verify().is_whole
    entries = [json.loads(line) for line in log.path.read_bytes().splitlines()]
    for name in "abc":
        assert [entry["number"] for entry in entries if entry["writer"] == name] == list(range(60))


def test_a_secret_others_may_read_is_refused(log: AuditLog) -> None:
    (log.path.parent / "secret.key").chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        AuditLog(log.path.parent)


def test_two_writers_of_one_process_take_turns(log: AuditLog) -> None:
    other = AuditLog(log.path.parent)
    for number in range(6):
        (log, other)[number % 2].append({"number": number})
    assert log.verify().is_whole
    assert other.verify().head.lines == ENTRIES + 6


def test_a_log_moved_away_is_missed_and_one_put_back_is_read(log: AuditLog) -> None:
    kept = log.path.with_name("kept")
    shutil.copy(log.path, kept)
    log.path.unlink()
    with pytest.raises(AuditError, match="cut"):
        log.append({"operation": "into nothing"})
    kept.replace(log.path)
    log.append({"operation": "next"})
    assert log.verify().is_whole
    assert log.verify().head.lines == ENTRIES + 1


def test_log_and_head_moved_away_together_begin_anew(log: AuditLog) -> None:
    for path in (log.path, log.path.with_suffix(".head")):
        path.rename(path.with_name("old-" + path.name))
    log.append({"operation": "first"})
    assert log.verify().head.lines == 1
    assert len(log.path.with_name("old-audit.jsonl").read_bytes().splitlines()) == ENTRIES


def test_a_full_disk_is_told_and_what_it_left_is_healed(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, content, offset: own(handle, content[:9], offset))
    with pytest.raises(AuditError, match="cannot be written"):
        log.append({"operation": "too much"})
    monkeypatch.undo()
    log.append({"operation": "next"})
    assert log.verify().is_whole
    assert log.verify().head.lines == ENTRIES + 1
