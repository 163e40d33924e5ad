"""Sections of a report on an anomaly adapter: branches and fusion beside baselines, what p is worth, where films are hot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from adapters.lora import load_weights, remove_lora
from adapters.tasks.anomaly import BRANCHES, LABEL, Detector
from foundation.errors import InvalidRequest
from foundation.preprocess import to_film
from foundation.readers import read_film
from training.finetuning.anomaly.finetune import AnomalyRecipe, is_asked
from training.finetuning.anomaly.look import FROM_NORMALS, Looked, from_few, heats, look
from training.finetuning.anomaly.scores import BASELINES
from training.manifests.manifest import Row
from training.measuring.asked import Asked
from training.measuring.metrics import Floats, PatientBootstrap, Statistic, auroc, average_precision, difference, weighted_mean
from training.measuring.plots import FilmPicture, curve_plot, films_plot, interval_plot
from training.measuring.pointing import point, regions_of
from training.measuring.report import Measure, Section
from training.measuring.scoring import Film, read_rows
from training.measuring.sections import GROUPS, group_of
from training.recipe import fill

FUSION = "fusion"
LEVELS = (0.01, 0.05, 0.1, 0.2)
HANDFULS = (8, 32, 128)
SHOWN = 4  # pictures of a kind
Supervised = Callable[[str], Mapping[str, Floats]]
"""From a source to the scores of models that learnt its labels, on its asked rows of the split; larger is stranger."""


@dataclass(frozen=True, eq=False)
class Anomaly(Asked):
    """What one report on anomalies has open."""

    min_count: int
    supervised: Supervised | None = None

    @cached_property
    def recipe(self) -> AnomalyRecipe:
        return fill(AnomalyRecipe, self.adapter.card.recipe, "the card's recipe")

    @property
    def normal(self) -> str:
        return self.recipe.data.normal

    def rows(self, split: str) -> tuple[Row, ...]:
        return tuple(row for row in self.manifest.of(split) if is_asked(row, self.recipe))

    def look(self, detector: Detector, rows: Sequence[Row]) -> Looked:
        return look(self.backbone, detector, rows, self.running)


@dataclass(frozen=True, eq=False)
class _Source:
    """One source's films: truth (N,), p-values (N,), scores (N,) by model."""

    name: str
    rows: tuple[Row, ...]
    is_abnormal: npt.NDArray[np.bool_]
    p_values: Floats
    scores: Mapping[str, Floats]
    draws: PatientBootstrap

    def auroc_of(self, model: str, among: npt.NDArray[np.bool_] | None = None) -> Statistic:
        kept = np.ones(len(self.rows), bool) if among is None else among
        return lambda weights: auroc(self.scores[model][kept], self.is_abnormal[kept], weights[:, kept])


def anomaly_sections(asked: Anomaly) -> list[Section]:
    """Sections of each source; then where films are hot. The backbone is left as it was."""
    rows = asked.rows(asked.split)
    is_abnormal = np.array([asked.normal not in row.labels for row in rows], dtype=bool)
    names = [str(row.get("source") or "films") for row in rows]
    sections: list[Section] = []
    with _opened(asked) as detector:
        seen = asked.look(detector, rows)
        reference = detector.reference
        scores = {FUSION: reference.surprise(seen.scores)} | dict(zip(BRANCHES, seen.scores.T, strict=True))
        p_values = reference.p_values(seen.scores)
        for name in dict.fromkeys(names):
            places = np.flatnonzero([one == name for one in names])
            positives = int(is_abnormal[places].sum())
            if not asked.min_count <= positives <= len(places) - asked.min_count:
                continue
            own = tuple(rows[place] for place in places)
            by = {model: values[places] for model, values in scores.items()} | _baselines(asked, name, own)
            draws = PatientBootstrap([row.patient_id for row in own], asked.resamples, asked.seed)
            source = _Source(name, own, is_abnormal[places], p_values[places], by, draws)
            sections += [_ranking(source), _groups(source, asked.min_count), _calibration(source)]
            sections.append(_handfuls(asked, detector, source, seen, places))
            sections.append(_pictures(asked, detector, source, seen.maps[places]))
        if not sections:
            raise InvalidRequest(
                f"split {asked.split!r} has in no source {asked.min_count} films labelled {asked.normal!r} and as many others: "
                "give a manifest with both",
                param="manifest",
            )
        sections.append(_pointing(asked, detector))
    return [section for section in sections if section.measures or section.plots]


@contextmanager
def _opened(asked: Anomaly) -> Iterator[Detector]:
    """The detector, while the backbone carries the adapter."""
    detector = Detector.open(asked.adapter.card, asked.adapter.head)
    detector.head.to(asked.running.device)
    load_weights(asked.backbone.image_tower, asked.adapter.lora)
    try:
        yield detector
    finally:
        remove_lora(asked.backbone.image_tower)


def _normals(asked: Anomaly, source: str) -> list[Row]:
    """The source's normal `train` films."""
    rows = [row for row in asked.manifest if row.split == "train" and is_asked(row, asked.recipe)]
    return [row for row in rows if asked.normal in row.labels and str(row.get("source") or "films") == source]


def _baselines(asked: Anomaly, source: str, rows: Sequence[Row]) -> dict[str, Floats]:
    """Learnt from this source's normal `train` films; and, where the caller gives them, from its labels."""
    normal = _normals(asked, source)
    if not normal:
        return {}
    learnt, shown = (_stack(list(read_rows(part, asked.backbone.contract))) for part in (normal, rows))
    made = {name: baseline(learnt, shown, asked.seed) for name, baseline in BASELINES.items()}
    return made | dict(asked.supervised(source) if asked.supervised is not None else {})


def _stack(films: Sequence[Film]) -> npt.NDArray[np.uint8]:
    return np.stack([film[..., :1] for film in films])  # the baselines see grey


def _ranking(source: _Source) -> Section:
    counts = (len(source.rows), int(source.is_abnormal.sum()))
    measures, marks = [], {}
    for model in source.scores:
        estimate = source.draws.estimate(source.auroc_of(model))
        marks[model] = [estimate]
        measures.append(Measure("auroc", estimate, model, LABEL, "all", *counts, source=source.name))
        precision = source.draws.estimate(_precision(source, model))
        measures.append(Measure("average_precision", precision, model, LABEL, "all", *counts, source=source.name))
        if model != FUSION:
            gain = source.draws.estimate(difference(source.auroc_of(FUSION), source.auroc_of(model)))
            measures.append(Measure("gain of fusion", gain, model, LABEL, "all", *counts, source=source.name))
    plot = interval_plot(f"anomaly-{source.name}.png", f"{source.name}: normal against the rest", [LABEL], marks)
    note = (
        f"{counts[0]} films of {source.draws.patients} patients, {counts[1]} abnormal. Branches: {', '.join(BRANCHES)}. "
        f"{' and '.join(BASELINES)} learn from the same source's normal training films, other baselines from its labels."
    )
    return Section(f"{source.name}: normal against the rest", note, tuple(measures), ("by",), ("name",), plots=(plot,))


def _precision(source: _Source, model: str) -> Statistic:
    return lambda weights: average_precision(source.scores[model], source.is_abnormal, weights)


def _groups(source: _Source, min_count: int) -> Section:
    measures = []
    for name in GROUPS:
        values = np.array([group_of(row, name) for row in source.rows])
        for value in sorted(set(values.tolist()) - {""}):
            among = values == value
            positives = int(source.is_abnormal[among].sum())
            if min_count <= positives <= int(among.sum()) - min_count:
                estimate = source.draws.estimate(source.auroc_of(FUSION, among))
                counts = (int(among.sum()), positives)
                measures.append(Measure("auroc", estimate, FUSION, LABEL, f"{name}={value}", *counts, source=source.name))
    return Section(f"{source.name}: normal against the rest, in whom", "", tuple(measures), ("group",), ("name",))


def _calibration(source: _Source) -> Section:
    """How often p falls to a level or below it: among normal films no more often than the level says."""
    measures = []
    for level in LEVELS:
        for group, wanted in (("normal", False), ("abnormal", True)):
            called = np.where(source.is_abnormal == wanted, source.p_values <= level, np.nan)
            estimate = source.draws.estimate(_share(called))
            count = int((source.is_abnormal == wanted).sum())
            measures.append(Measure(f"{group} films", estimate, FUSION, f"p at most {level}", films=count, source=source.name))
    normal = np.sort(source.p_values[~source.is_abnormal])
    grid = np.linspace(0, 1, 51)
    shares = (np.searchsorted(normal, grid, side="right") / len(normal)).tolist()
    curves = {"normal films": shares, "as stated": grid.tolist()}
    title = f"{source.name}: p-values of normal films"
    plot = curve_plot(f"p-values-{source.name}.png", title, "p", "share of films at most p", curves, grid.tolist())
    note = "If these normal films are like the held-out ones of the adapter, p is at most a level in that share of them."
    return Section(f"{source.name}: what p means", note, tuple(measures), ("label",), ("name",), plots=(plot,))


def _share(called: Floats) -> Statistic:
    return lambda weights: weighted_mean(called, weights)


# --- a handful of normal films ---------------------------------------------------------------------------------------


def _handfuls(asked: Anomaly, detector: Detector, source: _Source, seen: Looked, places: npt.NDArray[np.intp]) -> Section:
    """AUROC of the branches that learn from normal films alone, by how many they are given."""
    first: dict[str, Row] = {}
    for row in _normals(asked, source.name):
        first.setdefault(row.patient_id, row)
    order = np.random.default_rng(asked.seed).permutation(len(first))
    rows = [list(first.values())[place] for place in order[: max(HANDFULS)]]
    if not rows:
        return Section("")
    learnt, asked_of = asked.look(detector, rows).described, seen.described[places]
    counts = [count for count in HANDFULS if count <= len(rows)]
    by = {f"{count} normal films": from_few(detector.head, learnt[:count], asked_of, asked.seed) for count in counts}
    by["all, as the adapter has them"] = from_few(detector.head, None, asked_of, asked.seed)
    measures = []
    for label, scores in by.items():
        for name in FROM_NORMALS:
            estimate = source.draws.estimate(_auroc(scores[name], source.is_abnormal))
            measures.append(Measure("auroc", estimate, name, label, films=len(source.rows), source=source.name))
    note = "One film a patient, drawn once. Neither text nor the trained branch, nor what is usual where, is counted here."
    return Section(f"{source.name}: from a handful of normal films", note, tuple(measures), ("label",), ("by", "name"))


def _auroc(scores: Floats, truth: npt.NDArray[np.bool_]) -> Statistic:
    return lambda weights: auroc(scores, truth, weights)


# --- where films are hot ---------------------------------------------------------------------------------------------


def _pointing(asked: Anomaly, detector: Detector) -> Section:
    """The pointing game on every film with boxes, whatever its split."""
    rows = [row for row in asked.manifest if row.get("boxes") and is_asked(row, asked.recipe)]
    if not rows:
        return Section("")
    maps = heats(detector, asked.look(detector, rows).maps)
    scored = []
    for place, row in enumerate(rows):
        film = read_film(row.image.read_bytes())
        size = (film.pixels.shape[1], film.pixels.shape[2])
        own = {name: to_film(each[place], *size, asked.backbone.contract) for name, each in maps.items()}
        scored.append(point(own, np.any([*regions_of(row, size).values()], axis=0)))
    draws = PatientBootstrap([row.patient_id for row in rows], asked.resamples, asked.seed)
    measures = tuple(
        Measure("hits", draws.estimate(_share(np.array([one[name] for one in scored]))), name, films=len(rows))
        for name in scored[0]
    )
    learnt = sum(row.split != "test" for row in rows)
    kept = (
        "were kept from the adapter's training" if asked.recipe.data.held_out == "boxes" else "were learnt from, as whole films"
    )
    note = (
        f"The share of films whose hottest place lies in a box that a radiologist drew. {learnt} of {len(rows)} films are of "
        f"train or val: they {kept}. No box was ever learnt from."
    )
    return Section("Where it points", note, measures, rows=("by",), columns=("name",))


def _pictures(asked: Anomaly, detector: Detector, source: _Source, maps: npt.NDArray[np.float32]) -> Section:
    """Found, missed, and false alarms, the clearest of each, with their heat."""
    order = np.argsort(-source.scores[FUSION], kind="stable")
    ill, well = (order[source.is_abnormal[order] == wanted] for wanted in (True, False))
    chosen = [("found", ill[:SHOWN]), ("missed", ill[::-1][:SHOWN]), ("false alarm", well[:SHOWN])]
    pictures = []
    for kind, places in chosen:
        for place in places.tolist():
            [film] = read_rows([source.rows[place]], asked.backbone.contract)
            heat = to_film(detector.heat(maps[place : place + 1])[0], film.shape[0], film.shape[1], asked.backbone.contract)
            words = ", ".join(source.rows[place].labels) if kind != "false alarm" else ""
            pictures.append(FilmPicture(f"{kind}, p {source.p_values[place]:.3f}\n{words}", film[..., 0], heat=heat))
    plot = films_plot(f"films-{source.name}.png", f"{source.name}: clearest cases of each kind", pictures, SHOWN)
    return Section(f"{source.name}: pictures", "Real films: keep this picture where the films may be kept.", plots=(plot,))
