"""How well masks agree with the truth, in each film's own geometry: Dice, and distances between borders in millimetres.

Distances are MONAI's (HD95, mean surface distance, surface Dice within a tolerance), imported when first needed. Films
that carry no spacing are measured as if they were `film_height_mm` high, or in pixels where that is not given either.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foundation.image import MedicalImage
from foundation.preprocess import InputContract, to_film
from training.finetuning.segmentation.masks import MaskedFilms
from training.finetuning.segmentation.trainee import overlap
from training.measuring.metrics import Floats, PatientBootstrap, Statistic, weighted_mean

Mask = npt.NDArray[np.bool_]
MEASURES = ("dice", "hd95", "surface distance", "surface dice")
DISTANCES = ("hd95", "surface distance")
TOLERANCE_MM = 3.0


@dataclass(frozen=True)
class Ruler:
    """(row, column) spacing of one film's pixels in millimetres, of a volume (slice, row, column).

    `is_known` is False where it had to be assumed.
    """

    spacing_mm: tuple[float, ...]
    is_known: bool


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """values[measure] (N, K), NaN where the class is unknown or not in the film; presence (N, K) truth and answer."""

    labels: tuple[str, ...]
    patients: tuple[str, ...]
    values: dict[str, Floats]
    known: Mask
    there: Mask
    found: Mask
    unit: str = "mm"

    def statistic(self, measure: str, label: str) -> Statistic:
        values = self.values[measure][:, self.labels.index(label)]
        return lambda weights: weighted_mean(values, weights)

    def empty_statistic(self, label: str) -> Statistic:
        """Among films known to hold nothing of the class, the share for which nothing was drawn."""
        k = self.labels.index(label)
        values = np.where(self.known[:, k] & ~self.there[:, k], 1.0 - self.found[:, k], np.nan)
        return lambda weights: weighted_mean(values, weights)

    def count(self, label: str) -> int:
        return int(self.there[:, self.labels.index(label)].sum())

    def bootstrap(self, resamples: int = 500, seed: int = 0) -> PatientBootstrap:
        return PatientBootstrap(self.patients, resamples, seed)

    def mean_dice(self) -> float:
        values = self.values["dice"]
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def ruler_of(film: MedicalImage, film_height_mm: float) -> Ruler:
    given = film.spacing_mm if film.is_volume else (film.spacing_mm or ())[1:]
    if given and min(given) > 0:
        return Ruler(tuple(given), True)
    if film.is_volume:
        return Ruler((1.0, 1.0, 1.0), False)
    side = film_height_mm / film.pixels.shape[1] if film_height_mm else 1.0
    return Ruler((side, side), False)


def unit_of(film_height_mm: float) -> str:
    """What distances are in."""
    return "mm" if film_height_mm else "mm, pixels where spacing is unknown"


def score_masks(
    labels: Sequence[str],
    patients: Sequence[str],
    pairs: Iterable[tuple[Mapping[str, Mask], Mapping[str, Mask], Ruler]],
    unit: str = "mm",
) -> SegmentationScores:
    """pairs: for each film its masks as found and the known true ones, in the film's geometry, and its ruler."""
    count = (len(patients), len(labels))
    values = {measure: np.full(count, np.nan) for measure in MEASURES}
    known, there, drawn = (np.zeros(count, bool) for _ in range(3))
    for row, (found, truth, ruler) in enumerate(pairs):
        for k, label in enumerate(labels):
            if label not in truth:
                continue
            known[row, k], there[row, k], drawn[row, k] = True, truth[label].any(), found[label].any()
            if there[row, k]:
                for measure, value in compare(found[label], truth[label], ruler.spacing_mm).items():
                    values[measure][row, k] = value
    return SegmentationScores(tuple(labels), tuple(patients), values, known, there, drawn, unit)


def compare(found: Mask, truth: Mask, spacing_mm: tuple[float, ...]) -> dict[str, float]:
    """All measures of one mask (H, W) or (Z, H, W); of an empty answer Dice is 0 and every distance the diagonal."""
    if not found.any():
        diagonal = float(np.linalg.norm(np.array(truth.shape) * np.array(spacing_mm)))
        return dict(zip(MEASURES, (0.0, diagonal, diagonal, 0.0), strict=True))
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    ours, theirs = (torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in (found, truth))
    given = {"include_background": True, "spacing": list(spacing_mm)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an option that it passes to itself
        return {
            "dice": float(overlap(found.reshape(1, -1), truth.reshape(1, -1))),
            "hd95": float(compute_hausdorff_distance(ours, theirs, percentile=95, **given)),
            "surface distance": float(compute_average_surface_distance(ours, theirs, symmetric=True, **given)),
            "surface dice": float(compute_surface_dice(ours, theirs, [TOLERANCE_MM], **given)),
        }


def mean_mask(train: MaskedFilms, val: MaskedFilms) -> Callable[[int, int, InputContract], list[Mask]]:
    """A baseline that looks at nothing: each class's mean training mask, cut at the level that suits `val` best."""
    levels = np.linspace(0.1, 0.9, 17)
    means, cuts = [], []
    for k in range(train.masks.shape[1]):
        held = train.masks[train.known[:, k], k]
        mean = held.mean(axis=0, dtype=np.float64) / 255 if len(held) else np.zeros(train.masks.shape[2:])
        truth = val.masks[val.known[:, k], k] >= 128
        truth = truth[truth.any(axis=(1, 2))]
        dice = [overlap(np.broadcast_to(mean >= level, truth.shape), truth).sum() for level in levels]
        means.append(mean.astype(np.float32))
        cuts.append(float(levels[int(np.argmax(dice))]))
    return lambda height, width, contract: [
        to_film(mean, height, width, contract) >= cut for mean, cut in zip(means, cuts, strict=True)
    ]


def spread_out(mask: Mask, film: MedicalImage) -> Mask:
    """A mask (H, W) as it is for a film, for a volume the same in every slice."""
    return np.broadcast_to(mask, film.pixels.shape[:3]) if film.is_volume else mask
