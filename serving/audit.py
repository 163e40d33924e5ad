"""The audit log: who asked which model what kind of question about which film, and how it ended. Append-only, chained.

    audit.jsonl   one JSON object a line: {"n": 7, "at": ..., ..., "previous": <mark of line 6>, "mark": <mark of this>}
    audit.head    number, mark and end of the last line, under a seal

A mark is HMAC-SHA256 over the line and the mark before it, under a key derived from the server's secret. Whoever can
write the files but does not know the secret can change, remove, reorder or add no line unseen: the chain breaks, or the
log no longer reaches its head. Whoever puts back an older log together with its older head, or knows the secret, is
shown by `expected`: a mark that a person noted down elsewhere.

Each append holds a lock and starts from the head on disk, so several servers may share one log. The line is written
before the head: a process killed between the two leaves a log that is longer than its head, and the next append heals it.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from foundation.errors import InvalidRequest
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
        self.path, self._head_path = folder / LOG_FILE, folder / HEAD_FILE
        self._chain_key = _derived(secret, "audit chain")
        self._study_key = _derived(secret, "study")

    def study(self, digest: str) -> str:
        """A film's keyed hash: equal for equal films on this server, and nothing to anyone without its secret."""
        return hmac.new(self._study_key, digest.encode(), hashlib.sha256).hexdigest()[:32]

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one line. Raises AuditError where it cannot be written or the log is not as it was left."""
        try:
            with self._opened() as (log, head_file):
                head = self._healed(log, self._read_head(head_file))
                at = datetime.now(UTC).isoformat(timespec="milliseconds")
                body = {"n": head.lines + 1, "at": at, **entry, "previous": head.mark}
                line = _encoded({**body, "mark": self._mark(body)}) + b"\n"
                log.seek(head.end)
                log.write(line)
                self._write_head(head_file, Head(head.lines + 1, self._mark(body), head.end + len(line)))
        except (OSError, InvalidRequest):
            raise AuditError("the audit log cannot be written") from None

    def verify(self, expected: str = "") -> Verdict:
        """Read the log from its first line. expected: a mark noted down earlier, which must be among its lines."""
        with self._opened() as (log, head_file):
            head = self._read_head(head_file)
            if head is None:
                return Verdict(Head(), "The head of the log is missing or changed, so nobody can say how long the log was.")
            return self._walked(log, head, expected)

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

    def _healed(self, log: BinaryIO, head: Head | None) -> Head:
        """The true end: past whole lines that a killed process wrote behind the head; half a line is taken off."""
        size = log.seek(0, os.SEEK_END)
        if head is None and size:
            raise AuditError("the head of the audit log is missing or changed")
        head = head or Head()
        if size < head.end:
            raise AuditError("the audit log was cut")
        log.seek(head.end)
        for line in log.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                log.truncate(head.end)
                break
            found = self._next(line, head)
            if found is None:
                raise AuditError("the audit log holds a line that this server did not write")
            head = found
        return head

    @contextmanager
    def _opened(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """Log and head, unbuffered, for this process alone."""
        with _private(self.path) as log, _private(self._head_path) as head:
            fcntl.flock(log, fcntl.LOCK_EX)
            yield log, head

    def _read_head(self, file: BinaryIO) -> Head | None:
        """The head; a new one where neither it nor a log was ever written; None where it is gone or not ours."""
        text = file.read()
        if not text:
            return Head() if not self.path.stat().st_size else None
        try:
            plain = json.loads(text)
            seal = plain.pop("seal")
            head = Head(**plain)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return head if hmac.compare_digest(str(seal), self._mark(asdict(head))) else None

    def _write_head(self, file: BinaryIO, head: Head) -> None:
        file.seek(0)
        file.write(_encoded({**asdict(head), "seal": self._mark(asdict(head))}).ljust(_HEAD_BYTES))

    def _mark(self, body: Mapping[str, Any]) -> str:
        return hmac.new(self._chain_key, _encoded(body), hashlib.sha256).hexdigest()


def _private(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)


def _derived(secret: bytes, purpose: str) -> bytes:
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
