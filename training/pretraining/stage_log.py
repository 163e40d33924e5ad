"""OUT/stages.jsonl: a line a finished stage, with its recipe, how long it took and what validation said.

A run killed at any moment leaves the lines before or the lines after, never half of one: the file is written anew beside its
place and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.errors import InvalidRequest

STAGES = "stages.jsonl"


def note_stage(folder: Path, number: int, told: Mapping[str, Any]) -> None:
    """Add the line of a stage, counted from 1, in the place of its own and of later ones that a run stopped since has left."""
    kept = [line for line in read_stages(folder) if line.get("number", 0) < number]  # older lines have no number
    partial = folder / f"{STAGES}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in (*kept, {"number": number, **told}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / STAGES)


def read_stages(folder: Path) -> list[dict[str, Any]]:
    """The lines; a last one that was never finished is none. Raises InvalidRequest for any other that cannot be read."""
    path = folder / STAGES
    if not path.is_file():
        return []
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")  # what no line break ends is no line
    held: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            held.append(json.loads(line))
        except ValueError:
            raise InvalidRequest(
                f"Line {number} of {STAGES} in {folder.name!r} is not valid JSON; take it out.", param="out"
            ) from None
    return held
