"""RunLog: the numbers of a run, step by step, to OUT/log.jsonl and OUT/tensorboard/."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class RunLog:
    """Open for one run; a run that goes on adds to the files that are there."""

    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(out / "tensorboard"))
        self._file = (out / "log.jsonl").open("a", encoding="utf-8")

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        self._file.write(json.dumps({"kind": kind, "step": step, **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._board.close()
        self._file.close()
