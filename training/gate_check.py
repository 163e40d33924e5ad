"""What the gate lets through: films it should assess, by source, and pictures it should refuse.

The refused kinds are made from seeds that fitting never used; photographs are scikit-image's own, which it never saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from foundation.backbone import Backbone
from foundation.gate import Gate
from foundation.preprocess import render
from foundation.readers import read_film
from training.gate import Films, film_vectors, grey_films, modality_of, outside_films, phantom_greys
from training.manifest import Row
from training.metrics import PatientBootstrap, weighted_mean
from training.phantom_check import FIRST_SEED
from training.report import Measure, Section

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "retina", "rocket", "page", "brick", "grass", "horse")
CHECK_SEED = 77
PHANTOMS = 100


def gate_section(backbone: Backbone, gate: Gate, rows: Sequence[Row], *, resamples: int, seed: int) -> Section:
    """Share of films assessed, source by source; share of other pictures assessed, kind by kind."""
    measures: list[Measure] = []

    def add(label: str, group: str, vectors: npt.NDArray[np.float32], patients: Sequence[str]) -> None:
        passed = np.array([gate.assess(vector).assessed for vector in vectors], float)
        draws = PatientBootstrap(patients, resamples, seed)
        estimate = draws.estimate(lambda weights: weighted_mean(passed, weights))
        measures.append(Measure("assessed", estimate, "gate", label, group, films=len(passed)))

    chest = [row for row in rows if modality_of(row) == "CXR"]
    for source in dict.fromkeys(str(row.get("source") or "films") for row in chest):
        held = [row for row in chest if str(row.get("source") or "films") == source]
        films = grey_films([row.image for row in held], backbone.contract.size)
        add(source, "chest films", film_vectors(backbone, films), [row.patient_id for row in held])
    made = phantom_greys(PHANTOMS, backbone.contract.size, FIRST_SEED)
    add("phantoms", "chest films", film_vectors(backbone, made), _each(made))
    for label, films in _others(backbone.contract.size, rows, chest):
        add(label, "to be refused", film_vectors(backbone, films), _each(films))
    note = "Share of pictures that are assessed: high is right for chest films, low for all else."
    return Section("The gate: what is assessed", note, tuple(measures), rows=("group", "label"), columns=("name",))


def _others(size: int, rows: Sequence[Row], chest: Sequence[Row]) -> Iterator[tuple[str, Films]]:
    if chest:
        yield from outside_films(grey_films([row.image for row in chest[:200]], size), CHECK_SEED).items()
    for code in sorted({modality_of(row) for row in rows} - {"CXR"}):
        yield f"{code} slices", grey_films([row.image for row in rows if modality_of(row) == code], size)
    yield "photographs", _photographs(size)


def _photographs(size: int) -> Films:
    import io

    import skimage.data
    from PIL import Image

    from foundation.preprocess import InputContract

    contract = InputContract(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    films = []
    for name in PHOTOGRAPHS:
        picture = np.asarray(getattr(skimage.data, name)())
        grey = picture if picture.dtype == np.uint8 else picture.astype(np.uint8) * 255
        data = io.BytesIO()
        Image.fromarray(grey).convert("L").save(data, "PNG")
        films.append(render(read_film(data.getvalue()), contract)[..., 0])
    return np.stack(films)


def _each(films: Sequence[object] | Films) -> list[str]:
    return [str(index) for index in range(len(films))]
