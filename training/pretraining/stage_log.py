"""OUT/stages.jsonl: a line a finished stage, with its recipe, how long it took and what validation said.

A run killed at any moment leaves the lines before or the lines after, never half of one (`whole_file.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.errors import InvalidRequest
from training.whole_file import whole

STAGES = "stages.jsonl"


def note_stage(folder: Path, number: int, told: Mapping[str, Any]) -> None:
    """Add the line of a stage, counted from 1, in the place of its own and of later ones that a run stopped since has left."""
    kept = [line for line in read_stages(folder) if line.get("number", 0) < number]  # older lines have no number
    with whole(folder / STAGES) as partial:
        text = "".join(json.dumps(line) + "\n" for line in (*kept, {"number": number, **told}))
        partial.write_text(text, encoding="utf-8")


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
