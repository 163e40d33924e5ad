"""Trail: what the server remembers of a call once it has ended, as one line of the log and one of the audit log.

Health checks leave no trail. Calls that the guard turned away are counted and written together, at most once a minute:
a stranger must not be able to fill the disk.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

from serving.audit import AuditError, AuditLog
from serving.call import Call
from serving.http_errors import AuditUnavailable

log = logging.getLogger("serving.access")
_UNAUDITED = ("/healthz", "/readyz", "/metrics", "/openapi.json")
_TURNED_AWAY = {401, 403, 429}
_GATHERED_S = 60.0


class Trail:
    """audit: None where nothing is to be remembered (an app without a server around it). who: the server, or a front of it."""

    def __init__(self, audit: AuditLog | None, who: str = "server") -> None:
        self._audit = audit
        self._who = who
        self._is_broken = False
        self._turned_away: Counter[str] = Counter()
        self._gathered_since = -_GATHERED_S

    def opened(self) -> None:
        """It has started. Raises AuditUnavailable where the log cannot be written."""
        self.note("started")

    def note(self, what: str) -> None:
        """An event of its life. Raises AuditUnavailable where the log cannot be written."""
        if self._audit is not None:
            self._write({"event": f"{self._who} {what}"})
            if self._is_broken:
                raise AuditUnavailable

    def require(self, path: str) -> None:
        """Raise AuditUnavailable while the log cannot be written; tries again each time it is asked."""
        if self._is_broken and path not in _UNAUDITED:
            self._write({"event": "audit log written again"})
            if self._is_broken:
                raise AuditUnavailable

    def ended(self, call: Call, method: str, route: str, status: int) -> None:
        """The call's last byte is about to leave, or its caller has left. Raises AuditUnavailable where it cannot be kept."""
        seconds = round(time.monotonic() - call.started, 3)
        facts = {"method": method, "route": route, "status": status, "seconds": seconds, "caller": call.caller}
        log.info("answered", extra={"facts": facts, "request": call.id})
        if self._audit is None or route in _UNAUDITED:
            return
        if status in _TURNED_AWAY:
            self._turned_away[f"{status} {call.caller}"] += 1
            self._gather()
            return
        self._write(
            {
                "request": call.id,
                **facts,
                "operation": call.operation,
                "model": call.model,
                "studies": [self._audit.study(digest) for digest in call.studies],
                "errors": sorted(set(call.errors)),
            }
        )
        if self._is_broken:
            raise AuditUnavailable

    def close(self) -> None:
        """Write what is still gathered, and that it ends."""
        if self._audit is not None:
            self._gathered_since = -_GATHERED_S
            self._gather()
            self._write({"event": f"{self._who} stopped"})

    def _gather(self) -> None:
        now = time.monotonic()
        if not self._turned_away or now - self._gathered_since < _GATHERED_S:
            return
        counts, self._turned_away = dict(sorted(self._turned_away.items())), Counter()
        self._gathered_since = now
        self._write({"event": "turned away", "counts": counts})

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._audit is not None
        try:
            self._audit.append(entry)
        except AuditError as error:
            if not self._is_broken:
                log.error("%s; requests are refused until it can be", error)
            self._is_broken = True
        else:
            self._is_broken = False
