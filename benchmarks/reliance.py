"""Does the number called reliance tell an answer that rests on the film from one that does not?

    python -m benchmarks.reliance --manifest ../shared/data/chest/manifest.jsonl --films 60 --report runs/reliance.json

Each film of the split is asked closed questions (a finding it has, one it has not) and the open one; then a blank film of the
same mean grey is asked the same. What is measured is the area under the curve of the reliance of real films' answers against
those of blank ones, with an interval over patients. The gate, which refuses a blank film, is left out for this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from adapters.store import AdapterStore
from benchmarks.figures import tell
from foundation.checkpoint import open_checkpoint
from foundation.controls import blank
from serving.engine import Engine
from serving.messages import ChatTurn, Film, Request
from training.evaluating.chat_check import OPEN_QUESTION, choose_films, closed_questions
from training.manifests.manifest import Row, load_manifest
from training.measuring.metrics import PatientBootstrap, auroc
from training.measuring.scoring import read_rows

KINDS = ("closed, present", "closed, absent", "open")
INDEPENDENT_BELOW = 0.1  # as the page has it


def measure(engine: Engine, rows: Sequence[Row], resamples: int, seed: int) -> dict[str, Any]:
    """Reliance by kind of question, real against blank."""
    ids = count()
    table: list[tuple[str, str, bool, float, str]] = []  # patient, kind, is real, reliance, answer
    for place, (row, film) in enumerate(zip(rows, read_rows(rows, engine.backbone.contract), strict=True)):
        asked = [("open", OPEN_QUESTION)]
        asked += [(KINDS[0 if one.is_true else 1], one.question) for one in closed_questions(row, rows, seed + place)]
        for kind, question in asked:
            for is_real, pixels in ((True, film), (False, blank(film))):
                reliance, text = _ask(engine, next(ids), pixels, question)
                table.append((row.patient_id, kind, is_real, reliance, text))
    groups = {"findings": KINDS[:2], **{kind: (kind,) for kind in KINDS}}
    return {name: _summary([line for line in table if line[1] in kinds], resamples, seed) for name, kinds in groups.items()}


def _ask(engine: Engine, number: int, pixels: np.ndarray[Any, np.dtype[np.uint8]], question: str) -> tuple[float, str]:
    request = Request(number, "chat", film=Film(pixels, digest=f"{number:064x}"), turns=(ChatTurn("user", question),))
    text, reliance = "", float("nan")
    for outcome in engine.answer(request):
        if outcome.is_error:
            raise SystemExit(outcome.error_message)
        value = outcome.value or {}
        text += value.get("delta", "")
        evidence = value.get("evidence")
        if evidence and evidence["reliance"] is not None:
            reliance = float(evidence["reliance"])
    return reliance, text


def _summary(lines: Sequence[tuple[str, str, bool, float, str]], resamples: int, seed: int) -> dict[str, Any]:
    known = [line for line in lines if np.isfinite(line[3])]
    scores, real = np.array([line[3] for line in known]), np.array([line[2] for line in known])
    draws = PatientBootstrap([line[0] for line in known], resamples, seed)
    found = draws.estimate(lambda weights: auroc(scores, real, weights))
    return {
        "answers": len(known),
        "auroc": round(found.value, 3),
        "low": round(found.low, 3),
        "high": round(found.high, 3),
        "median, real": round(float(np.median(scores[real])), 4),
        "median, blank": round(float(np.median(scores[~real])), 4),
        "called independent, real": round(float((scores[real] < INDEPENDENT_BELOW).mean()), 3),
        "called independent, blank": round(float((scores[~real] < INDEPENDENT_BELOW).mean()), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliance", description=__doc__)
    parser.add_argument("--manifest", type=Path, default=Path("../shared/data/chest/manifest.jsonl"))
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--split", default="test")
    parser.add_argument("--source", default="nih_cxr14")
    parser.add_argument("--films", type=int, default=60)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    chosen = parser.parse_args()
    rows = [row for row in load_manifest(chosen.manifest).of(chosen.split) if row.get("source") == chosen.source]
    with mock.patch("serving.engine.Gate.load", return_value=None):
        engine = Engine(open_checkpoint(chosen.checkpoint), AdapterStore.default())
    found = measure(engine, choose_films(rows, chosen.films, chosen.seed), chosen.resamples, chosen.seed)
    tell({"films": chosen.films, "source": chosen.source, "split": chosen.split, "reliance": found}, chosen.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
