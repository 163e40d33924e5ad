"""The audit log: who asked which model what kind of question about which film, and how it ended. Append-only, chained.

    audit.jsonl   one JSON object a line: {"n": 7, "at": ..., ..., "previous": <mark of line 6>, "mark": <mark of this>}
    audit.head    number, mark and end of the last line, under a seal

A mark is HMAC-SHA256 over the line and the mark before it, under a key derived from the server's secret. Whoever can
write the files but does not know the secret can change, remove, reorder or add no line unseen: the chain breaks, or the
log no longer reaches its head. Whoever puts back an older log together with its older head, or knows the secret, is
shown by `expected`: a mark that a person noted down elsewhere.

Each append holds a lock and starts from the head on disk, so several servers may share one log; a head that is, to the
byte, the one this server wrote last need not be read again. The line is written before the head: a process killed between
the two leaves a log that is longer than its head, and the next append heals it.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from foundation.errors import InvalidRequest
from serving.held_file import HeldFile, write_all
from serving.home import make_home, read_secret

LOG_FILE, HEAD_FILE, SECRET_FILE = "audit.jsonl", "audit.head", "secret.key"
_START = "0" * 64
_HEAD_BYTES = 320  # of one length, so that a head is always replaced by one write


@dataclass(frozen=True)
class Head:
    """The end of the log: how many lines, the last one's mark, and the offset in bytes behind it."""

    lines: int = 0
    mark: str = _START
    end: int = 0


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. problem: a sentence naming the line, empty where the log is whole."""

    head: Head
    problem: str = ""

    @property
    def is_whole(self) -> bool:
        return not self.problem


class AuditError(Exception):
    """The log cannot be written, or does not end as it was left."""


class AuditLog:
    """The log of one home folder; made empty where there is none."""

    def __init__(self, home: Path | str | None = None) -> None:
        folder = make_home(home)
        secret = read_secret(folder / SECRET_FILE)
        self.path = folder / LOG_FILE
        self._log, self._head = HeldFile(self.path), HeldFile(folder / HEAD_FILE)
        self._written: tuple[bytes, Head] = (b"", Head())  # the head as it was written last
        self._turn = threading.Lock()
        self._chain_key = _derived(secret, "audit chain")
        self._study_key = _derived(secret, "study")

    def study(self, digest: str) -> str:
        """A film's keyed hash: equal for equal films on this server, and nothing to anyone without its secret."""
        return _hmac(self._study_key, digest.encode())[:32]

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one line. Raises AuditError where it cannot be written or the log is not as it was left."""
        try:
            with self._locked() as (log, head_file):
                head = self._healed(log, self._read_head(log, head_file))
                at = datetime.now(UTC).isoformat(timespec="milliseconds")
                body = _encoded({"n": head.lines + 1, "at": at, **entry, "previous": head.mark})
                mark = _hmac(self._chain_key, body)
                line = b'%s,"mark":"%s"}\n' % (body[:-1], mark.encode())
                write_all(log, line, head.end)
                self._write_head(head_file, Head(head.lines + 1, mark, head.end + len(line)))
        except (OSError, InvalidRequest):
            raise AuditError("the audit log cannot be written") from None

    def verify(self, expected: str = "") -> Verdict:
        """Read the log from its first line. expected: a mark noted down earlier, which must be among its lines."""
        with self._locked() as (log, head_file):
            head = self._read_head(log, head_file)
            if head is None:
                return Verdict(Head(), "The head of the log is missing or changed, so nobody can say how long the log was.")
            with open(log, "rb", closefd=False) as lines:
                lines.seek(0)
                return self._walked(lines, head, expected)

    def _walked(self, log: BinaryIO, head: Head, expected: str) -> Verdict:
        last, passes_head, passes_expected = Head(), head == Head(), not expected
        for line in log:
            found = self._next(line, last)
            if found is None:
                return Verdict(last, f"Line {last.lines + 1} was changed, added or moved, or the one before it was removed.")
            last = found
            passes_head = passes_head or last == head
            passes_expected = passes_expected or last.mark == expected
        if last.lines < head.lines:
            return Verdict(last, f"The log was cut: it has {last.lines} lines and should have {head.lines}.")
        if not passes_head:
            return Verdict(last, f"Line {head.lines} is not the one that the head of the log names.")
        if not passes_expected:
            return Verdict(last, "No line has the expected mark: the log was put back or written anew since it was noted.")
        return Verdict(last)

    def _next(self, line: bytes, last: Head) -> Head | None:
        """The end of the log behind `line`; None where it does not follow on `last`."""
        try:
            body = json.loads(line)
            mark = body.pop("mark")
            if body["n"] != last.lines + 1 or body["previous"] != last.mark:
                return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        # The bytes must be the ones written, since many texts parse to one value.
        if not hmac.compare_digest(str(mark), self._mark(body)) or _encoded({**body, "mark": mark}) + b"\n" != line:
            return None
        return Head(last.lines + 1, mark, last.end + len(line))

    def _healed(self, log: int, head: Head | None) -> Head:
        """The true end: past whole lines that a killed process wrote behind the head; half a line is taken off."""
        size = os.fstat(log).st_size
        if head is None and size:
            raise AuditError("the head of the audit log is missing or changed")
        head = head or Head()
        if size < head.end:
            raise AuditError("the audit log was cut")
        if size == head.end:
            return head
        for line in os.pread(log, size - head.end, head.end).splitlines(keepends=True):
            if not line.endswith(b"\n"):
                os.truncate(log, head.end)
                break
            found = self._next(line, head)
            if found is None:
                raise AuditError("the audit log holds a line that this server did not write")
            head = found
        return head

    @contextmanager
    def _locked(self) -> Iterator[tuple[int, int]]:
        """Log and head, for this process and thread alone."""
        with self._turn:
            log, head = self._log.handle, self._head.handle
            fcntl.flock(log, fcntl.LOCK_EX)
            try:
                yield log, head
            finally:
                fcntl.flock(log, fcntl.LOCK_UN)

    def _read_head(self, log: int, file: int) -> Head | None:
        """The head; a new one where neither it nor a log was ever written; None where it is gone or not ours."""
        text = os.pread(file, 2 * _HEAD_BYTES, 0)
        if not text:
            return Head() if not os.fstat(log).st_size else None
        if text == self._written[0]:
            return self._written[1]
        try:
            plain = json.loads(text)
            seal = plain.pop("seal")
            head = Head(**plain)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return head if hmac.compare_digest(str(seal), self._mark(vars(head))) else None

    def _write_head(self, file: int, head: Head) -> None:
        text = _encoded({**vars(head), "seal": self._mark(vars(head))}).ljust(_HEAD_BYTES)
        write_all(file, text, 0)
        self._written = text, head

    def _mark(self, body: Mapping[str, Any]) -> str:
        return _hmac(self._chain_key, _encoded(body))


def _hmac(key: bytes, content: bytes) -> str:
    return hmac.digest(key, content, "sha256").hex()


def _derived(secret: bytes, purpose: str) -> bytes:
    return hmac.digest(secret, purpose.encode(), "sha256")


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
