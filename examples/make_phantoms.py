"""Save synthetic chest films as PNG, each with its masks and a text file of report, questions and answers.

    python examples/make_phantoms.py FOLDER [--count 12] [--size 448] [--seed 0] [--finding effusion]...

Give --finding several times for several findings in each film; without it, findings are random.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a fresh clone as well

from foundation.errors import InvalidRequest
from foundation.phantom import Phantom, make_phantom


def main() -> int:
    parser = argparse.ArgumentParser(description="Save synthetic chest films with exact truth.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first film; the next ones count up")
    parser.add_argument("--finding", action="append", dest="findings", help="a finding to show; may be repeated")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seed, options.seed + options.count):
        try:
            phantom = make_phantom(seed, options.size, options.findings)
        except InvalidRequest as error:
            print(error.message, file=sys.stderr)
            return 2
        save(phantom, options.folder)
        print(f"{seed:6d}  {', '.join(phantom.labels) or 'normal'}")
    return 0


def save(phantom: Phantom, folder: Path) -> None:
    stem = f"phantom_{phantom.seed:06d}"
    Image.fromarray(phantom.film).save(folder / f"{stem}.png")
    for name, mask in phantom.masks.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{stem}_{name.replace(' ', '_')}.png")
    dialogue = "\n".join(f"{one.question}\n    {one.answer}" for one in phantom.questions())
    (folder / f"{stem}.txt").write_text(f"{phantom.report}\n\n{dialogue}\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
