"""Fit a checkpoint's gate anew, and write its passport with it: about a minute of one core.

python -m training.trust.fit_gate                                      the bundled model's
python -m training.trust.fit_gate FOLDER --manifest rows.jsonl --licences permissive attribution
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from foundation.checkpoint import open_checkpoint, write_passport
from training.trust.gate import GateRecipe, fit_checkpoint_gate

BUNDLED = Path(__file__).resolve().parents[2] / "foundation" / "weights"
MANIFEST = "../shared/data/chest/manifest.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.trust.fit_gate", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=BUNDLED)
    parser.add_argument("--manifest", type=Path, default=Path(MANIFEST))
    parser.add_argument("--licences", nargs="+", default=["permissive", "attribution"])
    parser.add_argument("--seed", type=int, default=GateRecipe.seed)
    chosen = parser.parse_args()
    began, began_cpu = time.monotonic(), time.process_time()
    licence = open_checkpoint(chosen.folder).passport.licence
    fit_checkpoint_gate(chosen.folder, chosen.manifest, chosen.licences, GateRecipe(seed=chosen.seed))
    write_passport(chosen.folder, licence)
    print(f"fitted in {time.monotonic() - began:.0f} s, {time.process_time() - began_cpu:.0f} s of them on the processor")


if __name__ == "__main__":
    main()
