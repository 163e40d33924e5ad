"""`vesalius audit verify`: is the audit log as the server wrote it? Prints the mark of its last line, to be noted elsewhere."""

from __future__ import annotations

import argparse

from app.show import Show
from foundation.errors import InvalidRequest


def add_audit_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("verify",))
    command.add_argument("--expect", default="", metavar="MARK", help="a mark noted earlier, which must still be there")
    command.add_argument("--home", help="the server's folder (default: $VESALIUS_HOME or ~/.local/share/vesalius)")


def run_audit(chosen: argparse.Namespace, show: Show) -> None:
    """Raises InvalidRequest (so: exit code 2) where there is no log, or where it is not whole."""
    from serving.audit import LOG_FILE, AuditLog
    from serving.home import home_folder

    folder = home_folder(chosen.home)
    if not (folder / LOG_FILE).is_file():
        raise InvalidRequest(f"There is no audit log in '{folder}'. Name the server's folder with --home.", param="home")
    verdict = AuditLog(folder).verify(chosen.expect)
    if not verdict.is_whole:
        raise InvalidRequest(f"The audit log is not whole. {verdict.problem}", param="audit")
    text = f"The audit log is whole: {verdict.head.lines} lines.\nLast mark, to note elsewhere: {verdict.head.mark}"
    show({"lines": verdict.head.lines, "mark": verdict.head.mark}, text)
