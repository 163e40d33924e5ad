"""Fine-tuning of the classification task: labelled rows to a calibrated adapter.

    rows -> film cache -> trunk cache -> Loop -> best epoch -> calibration -> card

Validation AUROC picks the epoch and the same split calibrates; `test` is scored beside the same backbone's zero-shot
answers. What is trained stands in `classification.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.card import Calibration
from adapters.files import Adapter, write_adapter
from adapters.lora import LoraWeights, remove_lora
from adapters.tasks.classification import NORMAL, calibrate
from foundation.errors import InvalidRequest, ManifestError
from training.calibrate import fit_platt, fit_temperature, fit_thresholds
from training.classification import AdaptedClassifier, ClassificationTrainee, Films
from training.conformal import fit_conformal
from training.finetune_job import FinetuneJob, FinetuneResult
from training.finetune_recipe import FinetuneRecipe
from training.finetune_report import Scored, write_report
from training.loop import Loop, LoopReport
from training.manifest import Manifest, Row
from training.trunk_cache import film_cache
from training.trust_metrics import Judged, trust_metrics

Floats = npt.NDArray[np.float64]
Job = FinetuneJob[FinetuneRecipe]


def classification_rows(rows: Manifest, recipe: FinetuneRecipe) -> Manifest:
    """The labelled rows."""
    return rows.select(lambda row: row.is_labelled)


def train_classification(job: Job) -> FinetuneResult:
    """Train, calibrate, score and write the adapter."""
    recipe, backbone = job.recipe, job.backbone
    labels = choose_labels(job.rows, recipe)
    films = {split: _films(job.rows.of(split), labels, job) for split, count in job.rows.counts.items() if count}
    trained = _train(job, labels, films)
    is_multi_label = recipe.data.multi_label
    calibration, thresholds = _calibrate(trained.logits["val"], films["val"].truth, is_multi_label)
    scored = [
        Scored(split, labels, films[split].truth, logits, trained.zero_shot[split], films[split].patients, is_multi_label)
        for split, logits in trained.logits.items()
    ]
    judged = [_judged(each, calibration) for each in scored]
    conformal = next(
        fit_conformal(one.probabilities, one.truth, one.patients, "val", is_multi_label=is_multi_label)
        for one in judged
        if one.split == "val"
    )
    card = job.card(
        labels,
        [*films["train"].rows, *films["val"].rows],
        is_multi_label=is_multi_label,
        head={"embed_dim": backbone.embed_dim, "width": backbone.width},
        calibration=calibration,
        thresholds=thresholds,
        conformal=conformal,
        metrics=(
            *(metric for each in scored for metric in each.metrics(calibration)),
            *(
                new
                for one in judged
                if one.split != "val"
                for new in trust_metrics(one, conformal)
                if new.name != "calibration error"
            ),
        ),
    )
    card = write_adapter(job.out / recipe.name, Adapter(card, trained.lora, trained.head))
    write_report(job.out, card, trained.report, {split: len(each.rows) for split, each in films.items()})
    return FinetuneResult(job.out / recipe.name, card, trained.report, {each.split: each.mean_auroc() for each in scored})


def _judged(scored: Scored, calibration: Calibration) -> Judged:
    """The same films as probabilities, calibrated and not."""
    after, before = (calibrate(scored.logits, how, scored.is_multi_label) for how in (calibration, Calibration()))
    return Judged(scored.split, scored.labels, after, before, scored.truth, scored.patients)


def choose_labels(rows: Manifest, recipe: FinetuneRecipe) -> tuple[str, ...]:
    """The recipe's labels, or every label of the training rows; each must occur in both train and val."""
    seen = {split: {label for row in rows.of(split) for label in row.labels} for split in ("train", "val")}
    labels = recipe.data.labels or tuple(sorted(seen["train"] - {NORMAL}))
    if not labels:
        raise InvalidRequest(f"The training rows have no label besides {NORMAL!r}: nothing can be learnt.", param="labels")
    for split, present in seen.items():
        absent = ", ".join(repr(label) for label in labels if label not in present)
        if absent:
            raise InvalidRequest(f"No {split} row has the label {absent}; correct or drop it.", param="labels")
    return labels


@dataclass(frozen=True, eq=False)
class _Trained:
    """The best epoch's weights, and raw outputs (N, K) by split after and before training."""

    lora: LoraWeights
    head: Mapping[str, Tensor]
    report: LoopReport
    logits: Mapping[str, Floats]
    zero_shot: Mapping[str, Floats]


def _train(job: Job, labels: Sequence[str], films: Mapping[str, Films]) -> _Trained:
    recipe, backbone = job.recipe, job.backbone
    trainee = ClassificationTrainee(backbone, recipe, films, job.cache, is_quiet=job.is_quiet)
    scored = [split for split in ("val", "test") if split in films]
    torch.manual_seed(recipe.seed)
    model = AdaptedClassifier(backbone, recipe, labels)
    try:
        zero_shot = {split: trainee.logits(model, films[split]) for split in scored}
        groups = model.groups(recipe.training)
        loop = Loop(trainee, model, groups, job.loop_config(), job.out / "loop", is_quiet=job.is_quiet)
        report = loop.run(resume=job.resume)
        logits = {split: trainee.logits(model, films[split]) for split in scored}
        return _Trained(model.weights(), model.head.state_dict(), report, logits, zero_shot)
    finally:
        remove_lora(backbone.image_tower)  # the backbone is given back as it was


def _films(rows: Sequence[Row], labels: Sequence[str], job: Job) -> Films:
    truth = np.array([[label in row.labels for label in labels] for row in rows], dtype=np.float32)
    if not job.recipe.data.multi_label and (truth.sum(axis=1) != 1).any():
        number = rows[int(np.flatnonzero(truth.sum(axis=1) != 1)[0])].number
        raise ManifestError(
            f"Row {number} has not exactly one of the labels {', '.join(labels)}; filter it out or set multi_label = true."
        )
    pixels = film_cache([row.image for row in rows], job.backbone.contract, job.cache, is_quiet=job.is_quiet)
    return Films(tuple(rows), pixels, truth)


def _calibrate(logits: Floats, truth: npt.NDArray[np.float32], is_multi_label: bool) -> tuple[Calibration, tuple[float, ...]]:
    if not is_multi_label:
        return fit_temperature(logits, truth.argmax(axis=1), "val"), ()
    calibration = fit_platt(logits, truth.astype(np.float64), "val")
    return calibration, fit_thresholds(calibrate(logits, calibration, True), truth.astype(np.float64))
