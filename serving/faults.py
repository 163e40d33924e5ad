"""What is said, and what is written down, of something unforeseen in the engine."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

from serving.messages import Outcome

log = logging.getLogger("serving.engine")
FAULT = "The server failed on this item. Nothing is wrong with the others; if it happens again, report it."


def fault(request_id: int, error: Exception, trace: str = "") -> Outcome:
    """The Outcome of something unforeseen."""
    log_fault(error, trace)
    return Outcome(request_id, error_code="internal_error", error_message=FAULT)


def log_fault(error: Exception, trace: str = "") -> None:
    """The log says where, never what: the error's text may hold a caller's words."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    log.error("unforeseen %s at %s", type(error).__name__, places, extra={"request": trace})
