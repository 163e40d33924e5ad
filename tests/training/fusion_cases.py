"""A made manifest for fusion: the outcome shows weakly in the film, in a laboratory value and in the note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RECIPE: dict[str, Any] = {
    "name": "course",
    "data": {
        "outcome": {"label": "ill", "column": "ward_offset"},
        "outcomes": ["death_offset"],
        "note": True,
        "field": [
            {"name": "crp", "unit": "mg/L", "low": 0.0, "high": 1000.0, "known_by": "crp_offset"},
            {"name": "ldh", "unit": "U/L", "low": 0.0},
            {"name": "sex", "modality": "patient", "kind": "category"},
        ],
    },
    "lora": {"rank": 2, "alpha": 2.0, "first_block": 1},
    "head": {"film": 6, "patch": 4, "note": 4, "width": 8, "folds": 3, "steps": 20, "rate": 0.01},
    "views": {"cached": 2},
    "training": {"epochs": 1, "batch_size": 16, "lora_rate": 1e-3},
}


def write_cases(folder: Path, count: int = 60, seed: int = 0, **changes: Any) -> Path:
    """`count` films of patients with one or two each: three fifths train, a fifth val, a fifth test."""
    random, lines = np.random.default_rng(seed), []
    for number in range(count):
        patient = number // 2
        is_ill = bool(patient % 2)
        film = random.normal(90, 25, (32, 32))
        film[18:, :14] += 60 * is_ill
        Image.fromarray(film.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        crp = round(max(1.0, random.normal(120 if is_ill else 60, 50)), 1)
        table: dict[str, Any] = {"ward_offset": -1.0 if is_ill else None, "death_offset": None}
        table |= {"crp": crp if random.random() < 0.7 else None, "crp_offset": 0.0}
        table |= {"ldh": random.choice(["inf", "-inf", "250", "310"]) if random.random() < 0.5 else None}
        split = "train" if patient % 10 < 6 else "val" if patient % 10 < 8 else "test"
        line = {"id": str(number), "image": f"{number}.png", "patient_id": f"p{patient}", "split": split, "source": "made"}
        line |= {"sex": "MF"[number % 2], "view": "AP", "tabular": table, "licence": "made", "licence_class": "permissive"}
        if random.random() < 0.6:
            line["text"] = f"Fever for {number % 5} days. {'Severe' if is_ill else 'Mild'} opacities. Moved to the ICU."
        lines.append(line | changes.get(str(number), {}))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path
