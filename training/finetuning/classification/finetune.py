"""Fine-tuning of the classification task: labelled rows to a calibrated adapter.

    rows -> film cache -> trunk cache -> the levels' fit -> Loop -> best epoch -> calibration -> card

Validation AUROC picks penalty and epoch, and the same split calibrates; `test` is scored beside the same backbone's
zero-shot answers. What is trained stands in `trainee.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.card import Calibration, Metric
from adapters.files import Adapter
from adapters.lora import LoraWeights, remove_lora
from foundation.preprocess import InputContract
from training.augment import AugmentStrength, augment
from training.finetuning.classification.few_shot import TRIALS, blend_prototypes, draw_shots
from training.finetuning.classification.label_table import LabelTable, Truth, choose_table
from training.finetuning.classification.phantom_rows import (
    FIRST_SEED,
    HELD_OUT_SEED,
    phantom_films,
    phantom_rows,
    phantom_truth,
)
from training.finetuning.classification.strata import blind_labels
from training.finetuning.classification.trainee import AdaptedClassifier, ClassificationTrainee, Films, mean_auroc, rankable
from training.finetuning.job import FinetuneJob, FinetuneResult
from training.finetuning.recipe import FinetuneRecipe
from training.finetuning.report import Scored, write_report
from training.finetuning.trunk_cache import film_cache, to_unit
from training.level_fit import fit_levels
from training.loop import LoopReport
from training.manifests.manifest import Manifest, Row
from training.trust.calibrate import calibrate_labels
from training.trust.conformal import fit_conformal
from training.trust.trust_metrics import Judged, trust_metrics

HELD_OUT_PHANTOMS = 200
PHANTOMS = "phantoms"
ALTERED = "test, altered"
Floats = npt.NDArray[np.float64]
Job = FinetuneJob[FinetuneRecipe]


def classification_rows(rows: Manifest, recipe: FinetuneRecipe) -> Manifest:
    """The labelled rows."""
    return rows.select(lambda row: row.is_labelled)


def train_classification(job: Job) -> FinetuneResult:
    """Train, calibrate, score and write the adapter."""
    recipe = job.recipe
    table = choose_table(job.rows, recipe.data)
    films = {split: _films(job.rows.of(split), table, job, split) for split, count in job.rows.counts.items() if count}
    if recipe.data.phantoms:
        films["train"] = _joined(films["train"], _phantoms(job, table, recipe.data.phantoms, FIRST_SEED))
        films[PHANTOMS] = _phantoms(job, table, HELD_OUT_PHANTOMS, HELD_OUT_SEED)
    if recipe.views.altered is not None and "test" in films:
        films[ALTERED] = _altered(films["test"], job.backbone.contract, recipe.views.altered)
    trials = _few_shot(job, table, films) if recipe.data.shots else (_train(job, table, films),)
    trained = trials[0]
    items = {split: films[split].by_study() if recipe.data.studies else films[split] for split in trained.logits}
    calibration, thresholds = calibrate_labels(trained.logits["val"], items["val"].truth, table.exclusive, "val")
    scored = [
        Scored(split, table, items[split].truth, logits, trained.zero_shot[split], items[split].patients)
        for split, logits in trained.logits.items()
    ]
    is_one_choice = table.is_one_choice
    judged = {each.split: _judged(each, calibration) for each in scored}
    val = judged["val"]
    conformal = fit_conformal(val.probabilities, val.truth, val.patients, "val", is_multi_label=not is_one_choice)
    card = job.card(
        table.labels,
        [*films["train"].rows, *films["val"].rows],
        is_multi_label=not is_one_choice,
        head={**trained.options, **({} if is_one_choice or not table.exclusive else {"exclusive": table.exclusive})},
        calibration=calibration,
        thresholds=thresholds,
        conformal=conformal,
        metrics=(
            *(metric for each in scored for metric in each.metrics(calibration, recipe.data.contrasts)),
            *(shot_metrics(recipe.seed, trials, items, table) if recipe.data.shots else ()),
            *(
                new
                for split, one in judged.items()
                if split != "val"
                for new in trust_metrics(one, conformal)
                if new.name != "calibration error"
            ),
        ),
    )
    card = job.write(Adapter(card, trained.lora, trained.head))
    write_report(job.out, card, trained.report, {split: len(each.rows) for split, each in films.items()})
    return FinetuneResult(job.out / recipe.name, card, trained.report, {each.split: each.mean_auroc() for each in scored})


def _judged(scored: Scored, calibration: Calibration) -> Judged:
    """The same films as probabilities, calibrated and not."""
    after, before = (scored.probabilities(how) for how in (calibration, Calibration()))
    return Judged(scored.split, scored.table.labels, after, before, scored.truth, scored.patients)


@dataclass(frozen=True, eq=False)
class Trained:
    """The best epoch's weights, and raw outputs (N, K) by split: trained, before, and after the blend of few shots."""

    lora: LoraWeights
    head: Mapping[str, Tensor]
    options: Mapping[str, object]
    report: LoopReport
    logits: Mapping[str, Floats]
    zero_shot: Mapping[str, Floats]
    blended: Mapping[str, Floats]


def _few_shot(job: Job, table: LabelTable, films: Mapping[str, Films]) -> tuple[Trained, ...]:
    """One training for each of three seeds, each on shots of its own; the first makes the adapter."""
    trials = []
    for seed in range(job.recipe.seed, job.recipe.seed + TRIALS):
        chosen = draw_shots(films["train"].truth, films["train"].patients, job.recipe.data.shots, seed)
        own = replace(job, recipe=replace(job.recipe, seed=seed), out=job.out / f"seed-{seed}")
        trials.append(_train(own, table, {**films, "train": films["train"].take(chosen)}))
    return tuple(trials)


def shot_metrics(seed: int, trials: Sequence[Trained], items: Mapping[str, Films], table: LabelTable) -> tuple[Metric, ...]:
    """Mean AUROC of each seed by zero-shot, by the training-free blend and after training."""
    return tuple(
        Metric(
            f"auroc mean, {name}",
            f"seed {seed + number}",
            split,
            round(mean_auroc(rankable(outputs[split], table.exclusive), items[split].truth), 4),
            films=len(items[split].rows),
        )
        for number, trial in enumerate(trials)
        for name, outputs in (("zero-shot", trial.zero_shot), ("blend", trial.blended), ("trained", trial.logits))
        for split in outputs
    )


def _train(job: Job, table: LabelTable, films: Mapping[str, Films]) -> Trained:
    recipe, backbone = job.recipe, job.backbone
    trainee = ClassificationTrainee(backbone, recipe, table, films, job.cache, is_quiet=job.is_quiet)
    scored = [split for split in films if split != "train"]
    torch.manual_seed(recipe.seed)
    model = AdaptedClassifier(backbone, recipe, table)
    try:
        zero_shot = {split: trainee.logits(model, split) for split in scored}
        if model.head.levels is not None:
            _start_levels(model, trainee, table, recipe)
        if recipe.data.shots:
            seen = trainee.embeddings(model, films["train"])
            blend_prototypes(model.head.text, seen, films["train"].truth)
        blended = {split: trainee.logits(model, split) for split in scored} if recipe.data.shots else {}
        groups = model.groups(recipe.training)
        report = job.train(trainee, model, groups, job.loop_config())
        job.settle(model.learnt())
        logits = {split: trainee.logits(model, split) for split in scored}
        return Trained(model.weights(), model.head.state_dict(), model.head.options, report, logits, zero_shot, blended)
    finally:
        remove_lora(backbone.image_tower)  # the backbone is given back as it was


def _start_levels(model: AdaptedClassifier, trainee: ClassificationTrainee, table: LabelTable, recipe: FinetuneRecipe) -> None:
    """Fit the reading of the levels together with a slope for the words, and put both into the head."""

    def score(logits: Floats, truth: Truth) -> float:
        return mean_auroc(rankable(logits, table.exclusive), truth)

    train, val = trainee.seen(model, "train"), trainee.seen(model, "val")
    chances = np.tile(trainee.chances, len(train.truth) // len(trainee.chances))
    blind = blind_labels(trainee.films["train"].rows, train.truth, table.exclusive, recipe.data.blind_to)
    fit = fit_levels(train, val, chances, recipe.head.penalties, table.exclusive, score, blind)
    head, slope = model.head, torch.from_numpy(fit.slope)
    assert head.levels is not None
    head.levels.start(*(torch.from_numpy(part) for part in (fit.mean, fit.spread, fit.weight, fit.bias)))
    with torch.no_grad():
        head.text.weight.mul_(slope[:, None].to(head.text.weight.device))
        head.text.bias.mul_(slope.to(head.text.bias.device))


def _films(rows: Sequence[Row], table: LabelTable, job: Job, split: str) -> Films:
    truth = table.truth(rows, job.recipe.data.uncertain if split == "train" else "ignore")
    pixels = film_cache([row.image for row in rows], job.backbone.contract, job.cache, is_quiet=job.is_quiet)
    return Films(tuple(rows), pixels, truth)


def _altered(films: Films, contract: InputContract, strength: AugmentStrength, chunk: int = 64) -> Films:
    """The same films as another scanner might give them: one view of each, always the same."""
    made = []
    for start in range(0, len(films.rows), chunk):
        values = to_unit(np.asarray(films.pixels[start : start + chunk]))
        moved = augment(values, contract.size, strength, torch.Generator().manual_seed(start))
        made.append((moved * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return Films(films.rows, np.concatenate(made), films.truth)


def _phantoms(job: Job, table: LabelTable, count: int, first_seed: int) -> Films:
    pixels, findings = phantom_films(count, first_seed, job.backbone.contract, job.cache)
    truth = phantom_truth(findings, table.labels)
    truth[:, [column for columns in table.exclusive for column in columns]] = np.nan  # a phantom is of no class
    return Films(phantom_rows(findings, first_seed), pixels, truth)


def _joined(first: Films, second: Films) -> Films:
    channels = max(first.pixels.shape[-1], second.pixels.shape[-1])
    both = [np.broadcast_to(each.pixels, (*each.pixels.shape[:-1], channels)) for each in (first, second)]
    return Films((*first.rows, *second.rows), np.concatenate(both), np.concatenate([first.truth, second.truth]))
