"""Image-text retrieval, scored by text: two films with the same reading are not each other's mistakes.

recall@k among the distinct readings (film to text) and among the films (text to film), over all queries and over
distinct texts, since one text ("normal") may hold half of the films. Chance is what random ranks would reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import numpy.typing as npt
from torch import Tensor

from training.manifests.manifest import Row
from training.measuring import metrics
from training.measuring.metrics import Estimate, PatientBootstrap, Statistic
from training.measuring.report import Measure, Section
from training.measuring.scoring import Backbone, embed_texts

KS = (1, 5, 10)
MIN_FILMS, MIN_TEXTS = 20, 5
TEXT_KINDS = (None, "radiologist_reading", "report")  # a clinical note tells a history, not the film


def retrieval_section(
    backbone: Backbone, source: str, rows: Sequence[Row], embeddings: Tensor, draws: PatientBootstrap
) -> list[Section]:
    """One section, or none where the rows carry too few distinct readings."""
    places = [place for place, row in enumerate(rows) if row.text and row.get("text_kind") in TEXT_KINDS]
    texts = [str(rows[place].text) for place in places]
    readings = metrics.distinct(texts)
    if len(places) < MIN_FILMS or len(readings) < MIN_TEXTS:
        return []
    similarity = (embeddings[places] @ embed_texts(backbone, readings).T).double().numpy()
    to_text, to_film = metrics.text_ranks(similarity, texts), metrics.image_ranks(similarity, texts)
    own = np.array([readings.index(text) for text in texts])
    row_draws = PatientBootstrap([rows[p].patient_id for p in places], draws.resamples, draws.seed)
    text_draws = PatientBootstrap(readings, draws.resamples, draws.seed)
    measures: list[Measure] = []
    for k in KS:
        measures += [
            _measure(k, "film to text", row_draws.estimate(_hits(to_text <= k)), source, len(places)),
            _measure(k, "film to text, mean over texts", row_draws.estimate(_by_text(to_text <= k, own)), source),
            _measure(k, "text to film", text_draws.estimate(_hits(to_film <= k)), source, len(readings)),
            _measure(k, "chance, film to text", Estimate(min(1.0, k / len(readings))), source),
            _measure(k, "chance, text to film", Estimate(chance_of_film(own, k)), source),
        ]
    note = (
        f"{len(places)} films with {len(readings)} distinct readings; equal text is one target, ties count as lost. "
        "Intervals of film to text resample patients, those of text to film the texts."
    )
    title = f"{source}: retrieval of readings"
    return [Section(title, note, tuple(measures), rows=("by",), columns=("name",))]


def chance_of_film(own: npt.NDArray[np.int64], k: int) -> float:
    """Mean over texts of the chance that k films drawn at random hold one of the text's."""
    films = len(own)
    missed = [comb(films - int(count), k) / comb(films, k) for count in np.bincount(own)]
    return 1.0 - float(np.mean(missed)) if k < films else 1.0


def _hits(hits: npt.NDArray[np.bool_]) -> Statistic:
    return lambda weights: metrics.weighted_mean(hits, weights)


def _by_text(hits: npt.NDArray[np.bool_], own: npt.NDArray[np.int64]) -> Statistic:
    def of_text(text: int) -> Statistic:
        members = own == text
        return lambda weights: metrics.weighted_mean(hits[members], weights[:, members])

    return metrics.mean_over([of_text(int(text)) for text in np.unique(own)])


def _measure(k: int, by: str, estimate: Estimate, source: str, films: int | None = None) -> Measure:
    return Measure(f"recall@{k}", estimate, by, films=films, source=source)
