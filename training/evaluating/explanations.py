"""Relevance maps at the pointing game (`measuring/pointing.py`): does the peak of a map lie on the finding?

    python -m training.evaluating.explanations --phantoms 120 --report runs/pointing

On phantoms, whose masks are exact, and on films of NIH with boxes drawn by radiologists. Beside every method stand what
needs no model: the centre of the film, a place drawn at random, and the place that is most often inside the regions of the
same finding on other films.

Two sanity checks (Adebayo 2018): the tower's weights are drawn at random, and another finding is asked for. A method whose
maps do not change under the first, or which hits as often under either, explains the film's edges and not the model.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from foundation.phantom import FINDINGS as PHANTOM_FINDINGS
from foundation.phantom import make_phantom
from foundation.preprocess import normalise
from foundation.prompts import prompt_pair
from foundation.relevance import methods_of, relevance_maps
from training.evaluating.phantom_check import FIRST_SEED
from training.manifests.datasets import render_grey
from training.manifests.manifest import Row, load_manifest
from training.measuring.metrics import Floats, PatientBootstrap, weighted_mean
from training.measuring.pointing import CENTRE, RANDOM_PLACE, Region, blind_hits, hit, regions_of
from training.measuring.report import Measure, Report, Section, write_report
from training.measuring.scoring import directions

MANIFEST = "../shared/data/chest/manifest.jsonl"
SKIPPED = ("tube", "hyperinflation")  # of the whole film, or nothing that a region says
USUAL_PLACE = "usual place"
BASELINES = (CENTRE, RANDOM_PLACE, USUAL_PLACE)
RANDOM_WEIGHTS, OTHER_LABEL = "random weights", "another finding"


@dataclass(frozen=True, eq=False)
class Pointed:
    """One film to be pointed at: grey (S, S) uint8, where each of its findings is, and whose it is."""

    film: npt.NDArray[np.uint8]
    regions: Mapping[str, Region]
    patient: str


@dataclass(eq=False)
class Hits:
    """By way of pointing, a value for each (film, finding), in one order: 1 a hit, 0 a miss, between them for chance."""

    patients: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    by: dict[str, list[float]] = field(default_factory=dict)
    likeness: dict[str, list[float]] = field(default_factory=dict)  # rank correlation with the randomised tower's map

    def add(self, by: str, value: float) -> None:
        self.by.setdefault(by, []).append(value)


def phantoms(count: int, size: int) -> list[Pointed]:
    """Phantoms of seeds that no training uses, with the masks of their findings."""
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        made = make_phantom(seed, size)
        regions = {name: made.masks[name] for name in PHANTOM_FINDINGS if name in made.masks and name not in SKIPPED}
        found.append(Pointed(made.film, {name: mask for name, mask in regions.items() if mask.any()}, str(seed)))
    return [one for one in found if one.regions]


def boxed_films(rows: Iterable[Row], size: int) -> list[Pointed]:
    """Films with boxes; several boxes of one finding are one region. Films of every split: nothing is fitted on boxes."""
    boxed = ((row, regions_of(row, (size, size))) for row in rows)
    return [Pointed(render_grey(row.image, size), regions, row.patient_id) for row, regions in boxed if regions]


def point(backbone: Backbone, films: Sequence[Pointed], seed: int = 0) -> Hits:
    """Every method of the tower, the two sanity checks and the baselines, on every finding of every film."""
    labels = sorted({name for one in films for name in one.regions})
    asked = directions(backbone, [prompt_pair(name) for name in labels])
    blind = randomised(backbone, seed)
    chance, hits = np.random.default_rng(seed), Hits()
    for one in films:
        pixels = torch.from_numpy(normalise(np.repeat(one.film[..., None], 3, 2), backbone.contract))
        own = [labels.index(name) for name in one.regions]
        absent = [k for k in range(len(labels)) if k not in own] or own
        other = [int(chance.choice(absent)) for _ in own]
        for name, region in one.regions.items():
            hits.patients.append(one.patient)
            hits.findings.append(name)
            _baselines(hits, name, region, [film.regions[name] for film in films if film is not one and name in film.regions])
        for method in methods_of(backbone.image_tower):
            maps = relevance_maps(backbone, pixels, asked[own + other], method)
            unlearnt = relevance_maps(blind, pixels, asked[own], method)
            for k, region in enumerate(one.regions.values()):
                hits.add(method, peak_in(maps[k], region))
                hits.add(f"{method}, {OTHER_LABEL}", peak_in(maps[len(own) + k], region))
                hits.add(f"{method}, {RANDOM_WEIGHTS}", peak_in(unlearnt[k], region))
                hits.likeness.setdefault(method, []).append(rank_correlation(maps[k], unlearnt[k]))
    return hits


def _baselines(hits: Hits, name: str, region: Region, others: Sequence[Region]) -> None:
    blind = blind_hits(region)
    usual = np.stack(others).mean(axis=0).astype(np.float32) if others else None
    blind[USUAL_PLACE] = hit(usual, region) if usual is not None else blind[RANDOM_PLACE]
    for by, value in blind.items():
        hits.add(by, value)


def peak_in(relevance: Tensor, region: Region) -> float:
    """relevance (h, w), spread over the film: 1 where its highest place is inside; a flat map points nowhere."""
    if float(relevance.max() - relevance.min()) <= 0:
        return 0.0
    spread = F.interpolate(relevance[None, None].float(), region.shape, mode="bicubic", align_corners=False)[0, 0]
    return hit(spread.cpu().numpy(), region)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, over the places of two maps; 0 where one is flat."""
    ranks = [one.flatten().double().argsort().argsort().double() for one in (first, second)]
    if any(float(one.max()) == float(one.min()) for one in (first, second)):
        return 0.0
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def randomised(backbone: Backbone, seed: int) -> Backbone:
    """A copy whose image tower has weights of the same spread, drawn at random."""
    blind = copy.deepcopy(backbone)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in blind.image_tower.parameters():
            if parameter.ndim > 1:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn.to(parameter) * parameter.std())
    return blind


def section(title: str, films: Sequence[Pointed], hits: Hits, resamples: int, seed: int) -> Section:
    """Hits by way of pointing, with intervals over patients, and how like the maps are to an untaught tower's."""
    draws = PatientBootstrap(hits.patients, resamples, seed)

    def measure(name: str, by: str, values: Sequence[float]) -> Measure:
        held: Floats = np.asarray(values, np.float64)
        return Measure(name, draws.estimate(lambda weights: weighted_mean(held, weights)), by, films=len(held))

    methods = sorted(hits.likeness)
    order = [*methods, *BASELINES, *(f"{method}, {check}" for method in methods for check in (OTHER_LABEL, RANDOM_WEIGHTS))]
    measures = [measure("hit", by, hits.by[by]) for by in order]
    measures += [measure("likeness to an untaught tower's map", method, hits.likeness[method]) for method in methods]
    note = (
        f"{len(films)} films, {len(hits.patients)} regions. A hit: the peak of the map inside the region, no tolerance. "
        "Likeness: rank correlation; near 0 is right."
    )
    return Section(title, note, tuple(measures), rows=("by",), columns=("name",))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluating.explanations", description=__doc__)
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--manifest", type=Path, default=Path(MANIFEST))
    parser.add_argument("--phantoms", type=int, default=120)
    parser.add_argument("--films", type=int, default=200, help="films with boxes at most")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=Path("runs/pointing"))
    chosen = parser.parse_args()
    backbone = open_checkpoint(chosen.checkpoint).backbone
    size = backbone.contract.size
    groups = {
        f"Phantoms, seeds from {FIRST_SEED}": phantoms(chosen.phantoms, size),
        "Films of NIH with boxes": boxed_films(load_manifest(chosen.manifest).rows, size)[: chosen.films],
    }
    parts = [
        section(title, films, point(backbone, films, chosen.seed), chosen.resamples, chosen.seed)
        for title, films in groups.items()
        if films
    ]
    about = {
        "command": f"python -m training.evaluating.explanations --phantoms {chosen.phantoms} --seed {chosen.seed}",
        "checkpoint": {"fingerprint": backbone.fingerprint},
        "seed": chosen.seed,
        "system": platform.platform(terse=True),
    }
    print(write_report(Report("The pointing game", about, tuple(parts)), chosen.report).read_text())


if __name__ == "__main__":
    main()
