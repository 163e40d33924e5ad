"""Fine-tuning of the segmentation task: rows with masks to an adapter that draws them.

    rows -> film cache + masks -> Loop (epoch by validation Dice) -> masks in each film's geometry -> card

Adapter and head are rounded to float16 before they are scored, so that what was measured is what is stored.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from adapters.files import Adapter
from adapters.lora import remove_lora
from training.finetuning.adapted_tower import level_widths
from training.finetuning.job import FinetuneResult
from training.finetuning.report import write_report
from training.finetuning.segmentation.card_scores import card_metrics, score, score_mean_mask
from training.finetuning.segmentation.click_trainee import ClickTrainee
from training.finetuning.segmentation.films import check_classes, load_films
from training.finetuning.segmentation.masks import class_names, mask_licence
from training.finetuning.segmentation.phrases import SpokenPhrases
from training.finetuning.segmentation.recipe import Job
from training.finetuning.segmentation.trainee import AdaptedSegmenter, SegmentationTrainee
from training.loop import Loop, LoopReport, ParameterGroup


def train_segmentation(job: Job) -> FinetuneResult:
    """Train, score in film geometry and write the adapter."""
    recipe, backbone = job.recipe, job.backbone
    labels = class_names(recipe.data.masks)
    films = {split: load_films(job, split) for split, count in job.rows.counts.items() if count}
    check_classes(films, labels)
    trainee = SegmentationTrainee(
        films,
        backbone.contract,
        recipe.views.strength,
        batch_size=recipe.training.batch_size,
        patient_balance=recipe.data.patient_balance,
        blanks=recipe.views.blanks,
        seed=recipe.seed,
        phrases=SpokenPhrases(backbone, recipe.head.phrases, labels) if recipe.head.phrases else None,
        spoken=recipe.views.spoken,
    )
    widths = level_widths(backbone)
    torch.manual_seed(recipe.seed)
    model = AdaptedSegmenter(backbone, recipe.lora, labels, recipe.head.templates)
    card = job.card(
        labels,
        [*dict.fromkeys((*films["train"].rows, *films["val"].rows))],  # a volume's row stands once a slice
        mask_licence,
        head={
            "context": recipe.data.context,
            "embed_dim": backbone.embed_dim,
            "level_widths": list(widths),
            "parts": recipe.head.parts,
            "unions": {name: list(parts) for name, parts in recipe.data.unions.items()},
        },
        thresholds=(0.5,) * len(labels),
    )
    try:
        report = job.train(trainee, model, model.groups(recipe.training), job.loop_config("dice"))
        learn_clicks(job, trainee, model)
        job.settle(model.learnt())
        scored = {split: score(job, trainee, model, films[split], card) for split in ("val", "test") if split in films}
        lora, head = model.weights(), {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    finally:
        remove_lora(backbone.image_tower)  # the backbone is given back as it was
    base = {split: score_mean_mask(job, films, split) for split in scored}
    metrics = tuple(metric for split in scored for metric in card_metrics(split, scored[split], base[split]))
    card = replace(card, metrics=metrics)
    card = job.write(Adapter(card, lora, head))
    write_report(job.out, card, report, {split: len(each.rows) for split, each in films.items()})
    scores: dict[str, float] = {split: each.mean_dice() for split, each in scored.items()}
    return FinetuneResult(job.out / recipe.name, card, report, scores, "dice")


def learn_clicks(job: Job, films: SegmentationTrainee, model: AdaptedSegmenter) -> LoopReport | None:
    """Train the refiner in OUT/clicks, the rest of the model frozen; the best by Dice over clicks on `val` stays in it."""
    recipe = job.recipe.clicks
    if not recipe.epochs:
        return None
    model.requires_grad_(False)
    refiner = list(model.head.refiner.requires_grad_(True).parameters())
    config = replace(job.loop_config("dice"), epochs=recipe.epochs, patience=None)
    trainee = ClickTrainee(films, recipe.rounds, job.recipe.head.parts)
    groups = [ParameterGroup("refiner", refiner, recipe.rate)]
    return Loop(trainee, model, groups, config, job.out / "clicks", is_quiet=job.is_quiet).run(resume=job.resume)
