"""What a benchmark found, as JSON: told, and kept where a report is asked for; and in which number format it ran."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.device import multiplies_bf16

PRECISION = "bfloat16" if multiplies_bf16("cpu") else "float32"  # unless another is asked for


def tell(found: Mapping[str, Any], report: Path | None) -> None:
    """Print the figures, and write them to `report` where it is given."""
    print(_text(found))
    if report is not None:
        keep(found, report)


def keep(found: Mapping[str, Any], report: Path) -> None:
    """Write the figures; folders on the way are made."""
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(_text(found) + "\n", encoding="utf-8")


def _text(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=1)
