"""Structured logs: one JSON object a line on standard error, with the id of the request it was written for.

What is ours is passed on: our own messages name codes, places and counts, never what a film or a caller said. What a
library says is withheld, since it may quote the file it read; its name, its level and the kind of an exception remain.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from serving.call import current_id

_OURS = ("foundation", "adapters", "serving", "app", "uvicorn.error")
WITHHELD = "(a library's message, withheld)"


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        is_ours = record.name.startswith(_OURS)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "at": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "request": getattr(record, "request", None) or current_id(),
            "message": record.getMessage() if is_ours else WITHHELD,
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _places(record.exc_info[1])
        return json.dumps(line | getattr(record, "facts", {}), ensure_ascii=True)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the time: whoever put another in its place may have closed the one before."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _places(error: BaseException) -> str:
    """What kind of error, and where; not what it says."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return f"{type(error).__name__} in " + " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(frames))


def configure(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send every logger of this process here. Libraries are heard from WARNING on."""
    handler = _StandardError() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(level if name != "uvicorn.error" else logging.WARNING)
