"""Makes everything that stands on the bundled checkpoint anew: `python docs/remake.py --checkpoint runs/bundled/checkpoint`.

    checkpoint   what `vesalius pretrain` left, into foundation/weights (left out: the checkpoint that is there)
    adapters     `vesalius finetune` by each recipe, in the order in which one is made for another, into adapters/library
    reports      `vesalius evaluate` of each, the pointing game, and what conformal sets cover, into docs/results
    pages        the figures of README.md and MODEL_CARD.md (tables.py)

Each part is one command of the command line, printed before it runs, its output in runs/remake/NAME.log. A part that is
done for this checkpoint is not done again: what was stopped goes on. `--only NAME` does one part alone, `--list` shows them.
Two CPU cores, well over an hour.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
WEIGHTS, LIBRARY, RESULTS = ROOT / "foundation" / "weights", ROOT / "adapters" / "library", ROOT / "docs" / "results"
WORK = Path("runs/remake")
ADAPTERS = {
    "cxr-findings": "classification",
    "tb-screen": "classification",
    "pediatric-pneumonia": "classification",
    "lungs": "segmentation",
    "cxr-anomaly": "anomaly",
    "covid-course": "fusion",
    "cxr-questions": "chat",  # answers with the findings' words: after them
}
MASKED = (
    "source=shenzhen",
    "source=hannover",
    "source=covid_chestxray",
    "licence_class=permissive",
    "licence_class=attribution",
)
REPORTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # which films, beside which baselines
    "cxr-findings": (("source=nih_cxr14",), ("hog", "cnn")),
    "tb-screen": (("source=shenzhen",), ("hog",)),
    "pediatric-pneumonia": (("source=kermany",), ("hog",)),
    "lungs": (MASKED, ("unet",)),
    "cxr-anomaly": (("source=nih_cxr14",), ("hog",)),
    "covid-course": (("source=hannover",), ()),
    "cxr-questions": (("source=vqa_rad",), ()),
    "zero-shot": ((), ("hog", "cnn")),
    "chat": ((), ()),
}


@dataclass(frozen=True)
class Part:
    """One command and what it leaves: `made`, a folder that is put in the place of `kept` when the command ended well."""

    name: str
    command: tuple[str, ...]
    made: Path
    kept: Path

    def run(self) -> None:
        shown = " ".join(self.command)
        print(f"{self.name}: {shown}", flush=True)
        log = WORK / f"{self.name}.log"
        if self.made.exists():
            shutil.rmtree(self.made)
        program = [sys.executable, "-m", "app.cli", *self.command[1:]] if self.command[0] == "vesalius" else self.command
        with log.open("w") as written:
            code = subprocess.run(program, stdout=written, stderr=subprocess.STDOUT, check=False).returncode
        if code:
            raise SystemExit(f"{self.name} ended with {code}; what it said is in {log}")
        put(self.made, self.kept)


def put(made: Path, kept: Path) -> None:
    """One folder in the place of another; of a report its text and figures alone, as its pictures may show films."""
    if RESULTS in kept.parents:
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", "report.md"):
            shutil.copyfile(made / name, kept / name)
        return
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(made, kept)


def parts(manifest: str) -> list[Part]:
    held = []
    for name, task in ADAPTERS.items():
        out = WORK / name
        command = ("vesalius", "finetune", task, "--manifest", manifest, "--recipe", name, "--out", str(out))
        held.append(Part(name, command, out / name, LIBRARY / name))
    for name, (where, baselines) in REPORTS.items():
        options = [f"--where {one}" for one in where] + [f"--baseline {one}" for one in baselines]
        held.append(_report(name, f"vesalius evaluate {name} --manifest {manifest} --split test {' '.join(options)}"))
    pointing = f"{sys.executable} -m training.evaluating.explanations --manifest {manifest} --phantoms 120 --seed 0"
    coverage = f"{sys.executable} -m training.evaluating.coverage --manifest {manifest}"
    return [*held, _report("explanations", pointing), _report("coverage", coverage)]


def _report(name: str, command: str) -> Part:
    made = Path("runs/reports") / name
    return Part(f"report-{name}", (*command.split(), "--report", str(made)), made, RESULTS / name)


def fingerprint() -> str:
    """Of the bundled checkpoint: its passport names the digest of every file."""
    return hashlib.sha256((WEIGHTS / "passport.json").read_bytes()).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the bundled library and every report anew.")
    parser.add_argument("--checkpoint", type=Path, help="what `vesalius pretrain` left; put in the bundled one's place first")
    parser.add_argument("--manifest", default="../shared/data/chest/manifest.jsonl")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--list", action="store_true", help="show the parts and their commands, do nothing")
    chosen = parser.parse_args()
    held = parts(chosen.manifest)
    unknown = sorted(set(chosen.only) - {part.name for part in held})
    if unknown:
        raise SystemExit(f"No part {unknown[0]!r}; known: {', '.join(part.name for part in held)}.")
    if chosen.list:
        print("\n".join(f"{part.name}: {' '.join(part.command)}" for part in held))
        return
    if chosen.checkpoint:
        chosen.checkpoint = chosen.checkpoint.resolve()
    os.chdir(ROOT)
    WORK.mkdir(parents=True, exist_ok=True)
    if chosen.checkpoint:
        put(chosen.checkpoint, WEIGHTS)
    base = fingerprint()
    for part in held:
        done = WORK / f"{part.name}.{base}.done"
        if (chosen.only and part.name not in chosen.only) or (done.exists() and part.name not in chosen.only):
            continue
        began = time.monotonic()
        part.run()
        done.write_text(f"{time.monotonic() - began:.0f} s\n")
        print(f"{part.name}: {done.read_text().strip()}", flush=True)
    subprocess.run([sys.executable, "docs/tables.py"], check=True)


if __name__ == "__main__":
    main()
