"""What the fake gateway answers for adapters' tasks: numbers and shapes that depend on the film's digest alone."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np

from adapters.tasks.rle import to_rle
from adapters.tasks.tabular import TabularField, check_table
from serving.messages import Film, Request

LUNGS = ("left lung", "right lung", "heart")
BRANCHES = ("text", "memory", "trained")
NORMALS = 200
MODALITIES = ("film", "note", "laboratory", "demographics")
_CRP, _LDH = "C-reactive protein", "lactate dehydrogenase"
FIELDS = (
    TabularField("crp", "laboratory", "number", "mg/L", 0.0, 1000.0, 0.0, 355.0, description=_CRP),
    TabularField("ldh", "laboratory", "number", "U/L", 0.0, 20000.0, 150.0, 1590.0, description=_LDH),
    TabularField("sex", "demographics", "category", categories=("F", "M")),
)


def draw(*parts: str) -> float:
    """A number in 0..1 that depends on the words alone."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def masks(request: Request) -> dict[str, Any]:
    """An ellipse a class at a place the digest chooses; the last class is never there. A point moves it to the point."""
    film = request.film
    assert film is not None
    wanted = [label for label in LUNGS if label in (request.options.get("labels") or LUNGS)]
    presence = [0.1 if label == LUNGS[-1] else 0.5 + draw(film.digest, label) / 2 for label in wanted]
    points = request.options.get("points") or []
    drawn = []
    for label, present in zip(wanted, presence, strict=True):
        centre = (points[0][0], points[0][1]) if points else None
        drawn.append(to_rle(_ellipse(film, label, centre) & (present >= 0.5)))
    return {"labels": wanted, "presence": presence, "thresholds": [0.5] * len(wanted), "masks": drawn}


def strangeness(film: Film) -> dict[str, Any]:
    p_value = (1 + int(draw(film.digest, "p") * NORMALS)) / (NORMALS + 1)
    return {
        "score": 1 - p_value,
        "p_value": p_value,
        "branches": {name: draw(film.digest, name) for name in BRANCHES},
        "normals": NORMALS,
        "heat": np.linspace(0.25, 0.75, 16 * 16).reshape(16, 16).tolist(),
    }


def fused(request: Request) -> dict[str, Any]:
    """Each modality by itself, and their mean as the joint answer of any subset."""
    check_table(FIELDS, request.options["tabular"])
    table = {name: cell for name, cell in request.options["tabular"].items() if cell is not None}
    groups = {field.modality for field in FIELDS if field.name in table}
    given = {"film": bool(request.films), "note": bool(request.texts), **{name: name in groups for name in MODALITIES[2:]}}
    present = [name for name, is_there in given.items() if is_there]
    words = [*(film.digest for film in request.films), *request.texts, *map(str, table.items())]
    unimodal = {name: draw(name, *words) for name in present}
    subsets = [one for size in range(1, len(present) + 1) for one in itertools.combinations(present, size)]
    chances = [sum(unimodal[name] for name in one) / len(one) for one in subsets]
    return {
        "label": "intensive care",
        "probability": chances[-1],
        "logit": _logit(chances[-1]),
        "prior": 0.3,
        "threshold": 0.5,
        "method": "joint" if len(present) > 1 else present[0],
        "present": present,
        "absent": [name for name in given if name not in present],
        "unimodal": unimodal,
        "subsets": [
            {"modalities": list(one), "probability": chance, "logit": _logit(chance), "method": "joint"}
            for one, chance in zip(subsets, chances, strict=True)
        ],
        "shapley": {name: (_logit(chances[-1]) - _logit(0.3)) / len(present) for name in present},
        "conformal": [],
        "unusual": [],
        "removed": 0,
        "contributions": {name: draw(name) for name in table} if request.options.get("contributions") else None,
    }


def _logit(chance: float) -> float:
    return math.log((chance + 1e-9) / (1 - chance + 1e-9))


def _ellipse(film: Film, label: str, centre: tuple[float, float] | None) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    height, width = film.extent
    row, column = centre or (height * draw(film.digest, label, "row"), width * draw(film.digest, label, "column"))
    y, x = np.ogrid[:height, :width]
    return np.asarray(((y - row) / (height / 4)) ** 2 + ((x - column) / (width / 6)) ** 2 <= 1)
