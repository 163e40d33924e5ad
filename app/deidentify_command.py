"""`vesalius deidentify IN OUT`: DICOM films without their patients. New names, since a file's name may be a patient's."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.show import Show
from foundation.errors import FilmError, InvalidRequest

SECRET_FILE = "deidentify.key"


def add_deidentify_command(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path, metavar="IN", help="a DICOM file, or a folder of them")
    command.add_argument("out", type=Path, metavar="OUT", help="a folder; films are written there as UID.dcm")
    command.add_argument("--key-file", type=Path, help="32 secret bytes, made on first use (default: in the home folder)")


def run_deidentify(chosen: argparse.Namespace, show: Show) -> None:
    """All films get out or are named as refused. Raises InvalidRequest where none could be written."""
    from foundation.deidentify import Pseudonyms
    from serving.home import make_home, read_secret

    pseudonyms = Pseudonyms(read_secret(chosen.key_file or make_home() / SECRET_FILE))
    report = [_one(path, chosen.out, pseudonyms) for path in _sources(chosen.source)]
    written = sum("out" in one for one in report)
    if not written:
        first = report[0]["error"] if report else "There is no file."
        raise InvalidRequest(f"Nothing was de-identified. {first}", param="source")
    text = [f"De-identified {written} of {len(report)} files into {chosen.out}."]
    text += [f"refused: {one['in']}: {one['error']}" for one in report if "error" in one]
    text += [f"warning: {one['out']}: {warning}" for one in report for warning in one.get("warnings", ())]
    show({"written": written, "files": report}, "\n".join(text))


def _sources(source: Path) -> Iterator[Path]:
    if not source.exists():
        raise InvalidRequest(f"There is no file or folder '{source}'.", param="source")
    yield from sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else (source,)


def _one(path: Path, out: Path, pseudonyms: Any) -> dict[str, Any]:
    from foundation.deidentify import deidentify

    try:
        film = deidentify(path.read_bytes(), pseudonyms)
    except FilmError as error:
        return {"in": str(path), "error": error.message}
    target = out / f"{film.uid}.dcm"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(film.data)
    except FileExistsError:
        return {"in": str(path), "error": f"'{target}' is there already; it is not written over."}
    return {"in": str(path), "out": str(target), "removed": sum(film.removed.values()), "warnings": list(film.warnings)}
