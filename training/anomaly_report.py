"""Sections of a report on an anomaly adapter: each branch and their fusion beside plain baselines, and what p is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from adapters.files import Adapter
from adapters.lora import load_weights, remove_lora
from adapters.tasks.anomaly import BRANCHES, LABEL, Detector
from foundation.errors import InvalidRequest
from training.anomaly_scores import BASELINES
from training.finetune_anomaly import AnomalyRecipe
from training.manifest import Manifest, Row
from training.metrics import Floats, PatientBootstrap, Statistic, auroc, average_precision, difference, weighted_mean
from training.plots import curve_plot, interval_plot
from training.recipe import fill
from training.report import Measure, Section
from training.scoring import Backbone, Film, Running, read_rows, run_films
from training.sections import GROUPS, group_of

FUSION = "fusion"
LEVELS = (0.01, 0.05, 0.1, 0.2)


@dataclass(frozen=True, eq=False)
class Anomaly:
    """What one report on anomalies has open."""

    backbone: Backbone
    adapter: Adapter
    manifest: Manifest
    split: str
    running: Running
    resamples: int
    seed: int
    min_count: int

    @property
    def normal(self) -> str:
        return fill(AnomalyRecipe, self.adapter.card.recipe, "the card's recipe").data.normal


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
    """Two sections a source. The backbone is left as it was."""
    rows = [row for row in asked.manifest.of(asked.split) if row.is_labelled]
    scores, p_values = _run(asked, rows)
    is_abnormal = np.array([asked.normal not in row.labels for row in rows], dtype=bool)
    names = [str(row.get("source") or "films") for row in rows]
    sections: list[Section] = []
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
    if not sections:
        raise InvalidRequest(
            f"split {asked.split!r} has in no source {asked.min_count} films labelled {asked.normal!r} and as many others: "
            "give a manifest with both",
            param="manifest",
        )
    return [section for section in sections if section.measures]


@torch.inference_mode()
def _run(asked: Anomaly, rows: Sequence[Row]) -> tuple[dict[str, Floats], Floats]:
    detector = Detector.open(asked.adapter.card, asked.adapter.head)
    detector.head.to(asked.running.device)
    load_weights(asked.backbone.image_tower, asked.adapter.lora)
    try:
        films = read_rows(rows, asked.backbone.contract)
        parts = [
            detector.head(features, asked.backbone.patch_embeddings(features)).films.double().cpu().numpy()
            for features in run_films(asked.backbone, films, asked.running)
        ]
    finally:
        remove_lora(asked.backbone.image_tower)
    table = np.concatenate(parts)
    scores = {FUSION: detector.reference.surprise(table)} | dict(zip(BRANCHES, table.T, strict=True))
    return scores, detector.reference.p_values(table)


def _baselines(asked: Anomaly, source: str, rows: Sequence[Row]) -> dict[str, Floats]:
    """Learnt from this source's normal `train` films."""
    normal = [
        row for row in asked.manifest.of("train") if asked.normal in row.labels and str(row.get("source") or "films") == source
    ]
    if not normal:
        return {}
    learnt, shown = (_stack(list(read_rows(part, asked.backbone.contract))) for part in (normal, rows))
    return {name: baseline(learnt, shown, asked.seed) for name, baseline in BASELINES.items()}


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
        "Baselines learn from the same source's normal training films."
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
