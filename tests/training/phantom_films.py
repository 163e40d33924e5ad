"""Phantoms on disk with exact masks, and manifests over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foundation.phantom import make_phantom

VALUES = {"left lung": 1, "right lung": 2, "effusion": 3}


def write_phantoms(
    folder: Path, counts: dict[str, int], size: int = 64, findings: Sequence[str] | None = ("effusion",), first_seed: int = 0
) -> Path:
    """A manifest of phantoms; every second one has `findings`, the others are normal (None: whatever the seed gives).

    `mask` holds the lungs (any value above zero); `mask_multi` left lung 1, right lung 2, effusion 3 (over the lungs).
    """
    lines: list[dict[str, Any]] = []
    for split, count in counts.items():
        for _ in range(count):
            number = first_seed + len(lines)
            wanted = None if findings is None else (findings if number % 2 else ())
            phantom = make_phantom(number, size, wanted)
            lungs = phantom.masks["left lung"] | phantom.masks["right lung"]
            multi = np.zeros(phantom.film.shape, np.uint8)
            for name, value in VALUES.items():
                if name in phantom.masks:
                    multi[phantom.masks[name]] = value
            _save(folder / f"{number}.png", phantom.film)
            _save(folder / f"{number}-lungs.png", lungs.astype(np.uint8) * 255)
            _save(folder / f"{number}-multi.png", multi)
            line = {"image": f"{number}.png", "id": str(number), "patient_id": f"p{number}", "split": split}
            line |= {"mask": f"{number}-lungs.png", "mask_multi": f"{number}-multi.png", "source": "phantom"}
            line |= {"labels": list(phantom.labels) or ["normal"], "licence": "none", "licence_class": "permissive"}
            line |= {"mask_licence_class": "nc" if number % 4 == 0 else "permissive"}
            lines.append(line)
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def _save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    Image.fromarray(pixels).save(path)
