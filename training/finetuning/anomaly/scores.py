"""What anomaly detection is measured by, and two plain baselines that learn from the same normal films.

pca   64 px films; the error of rebuilding one from the principal components of normal films
hog   oriented gradients at 128 px; the distance to the nearest normal films among the components of normal ones
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from adapters.card import Metric
from training.measuring.baselines import describe
from training.measuring.metrics import Floats, PatientBootstrap, Statistic, auroc, difference, weighted_mean

PIXEL_SIZE, HOG_SIZE = 64, 128
COMPONENTS, NEIGHBOURS = 48, 5
ALARM = 0.05
Films = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class AnomalyScores:
    """One split: truth (N,), p-values (N,), and scores (N,) by name, larger being stranger; "fusion" among them."""

    split: str
    patients: tuple[str, ...]
    is_abnormal: npt.NDArray[np.bool_]
    p_values: Floats
    scores: Mapping[str, Floats]

    def auroc_of(self, name: str) -> Statistic:
        return lambda weights: auroc(self.scores[name], self.is_abnormal, weights)

    def alarms(self, among_abnormal: bool) -> Statistic:
        """The share of films with p at most ALARM, among abnormal or among normal ones."""
        called = np.where(self.is_abnormal == among_abnormal, self.p_values <= ALARM, np.nan)
        return lambda weights: weighted_mean(called, weights)

    def bootstrap(self, resamples: int = 500, seed: int = 0) -> PatientBootstrap:
        return PatientBootstrap(self.patients, resamples, seed)


def card_metrics(scored: AnomalyScores, label: str, baselines: Sequence[str] = ()) -> Iterator[Metric]:
    """AUROC of every score, what the fusion gains over each baseline, and how often p raises an alarm."""
    draws = scored.bootstrap()
    statistics: dict[str, Statistic] = {"auroc": scored.auroc_of("fusion")}
    statistics |= {f"auroc {name}": scored.auroc_of(name) for name in scored.scores if name != "fusion"}
    statistics |= {f"gain over {name}": difference(scored.auroc_of("fusion"), scored.auroc_of(name)) for name in baselines}
    statistics |= {f"alarms at p {ALARM}, normal": scored.alarms(False), f"alarms at p {ALARM}, abnormal": scored.alarms(True)}
    for name, statistic in statistics.items():
        one = draws.estimate(statistic)
        if math.isfinite(one.value):
            low, high = (None if math.isnan(bound) else round(bound, 4) for bound in (one.low, one.high))
            positives = int(scored.is_abnormal.sum())
            yield Metric(name, label, scored.split, round(one.value, 4), low, high, one.level, positives, len(scored.patients))


def pixel_error(normals: Films, films: Films, seed: int = 0) -> Floats:
    """(N, S, S, C) films -> (N,): mean squared error of the rebuilt film, each film standardised first."""
    from sklearn.decomposition import PCA

    learnt, asked = (_standardised(small_films(part, PIXEL_SIZE)) for part in (normals, films))
    pca = PCA(_components(learnt), svd_solver="randomized", random_state=seed).fit(learnt)
    rebuilt = pca.inverse_transform(pca.transform(asked))
    return np.asarray(((asked - rebuilt) ** 2).mean(axis=1), dtype=np.float64)


def gradient_distance(normals: Films, films: Films, seed: int = 0) -> Floats:
    """(N,): mean distance to the nearest normal films in whitened components of oriented gradients."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    learnt, asked = (describe(small_films(part, HOG_SIZE)) for part in (normals, films))
    pca = PCA(_components(learnt), whiten=True, svd_solver="randomized", random_state=seed).fit(learnt)
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(learnt))).fit(pca.transform(learnt))
    return np.asarray(nearest.kneighbors(pca.transform(asked))[0].mean(axis=1), dtype=np.float64)


BASELINES = {"pixel PCA": pixel_error, "gradient distance": gradient_distance}


def small_films(films: Films, size: int) -> Films:
    """(N, S, S, C) -> (N, size, size) grey."""
    return np.stack([np.asarray(_grey(film).resize((size, size), Image.Resampling.BILINEAR)) for film in films])


def _grey(film: Films) -> Image.Image:
    return Image.fromarray(film[..., 0]) if film.shape[-1] == 1 else Image.fromarray(film).convert("L")


def _standardised(films: Films) -> Floats:
    flat = films.reshape(len(films), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / (flat.std(axis=1, keepdims=True) + 1e-6))


def _components(learnt: npt.NDArray[np.floating]) -> int:
    return max(1, min(COMPONENTS, len(learnt) // 2, int(learnt.shape[1])))
