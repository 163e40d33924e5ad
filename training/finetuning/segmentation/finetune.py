"""Fine-tuning of the segmentation task: rows with masks to an adapter that draws them.

    rows -> film cache + masks -> Loop (epoch by validation Dice) -> masks in each film's geometry -> card

Adapter and head are rounded to float16 before they are scored, so that what was measured is what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from adapters.card import AdapterCard, Metric
from adapters.files import Adapter
from adapters.lora import remove_lora
from adapters.tasks.segmentation import TASK, SegmentationResult, Segmenter
from adapters.tasks.volume import VolumeSegmentation, segment_volume
from foundation.errors import InvalidRequest, ManifestError
from foundation.image import MedicalImage
from foundation.readers import read_film
from training.augment import AugmentStrength
from training.finetuning.adapted_tower import level_widths
from training.finetuning.job import FinetuneJob, FinetuneResult
from training.finetuning.recipe import PaceRecipe, RowsRecipe, TaskRecipe
from training.finetuning.report import write_report
from training.finetuning.segmentation.click_trainee import ClickTrainee
from training.finetuning.segmentation.masks import (
    Mask,
    MaskedFilms,
    MaskRecipe,
    check_masks,
    class_names,
    has_masks,
    load_masked,
    load_volumes,
    mask_licence,
    read_masked,
    with_unions,
)
from training.finetuning.segmentation.phrases import Phrase, SpokenPhrases, check_phrases
from training.finetuning.segmentation.scores import (
    DISTANCES,
    MEASURES,
    Ruler,
    SegmentationScores,
    mean_mask,
    ruler_of,
    score_masks,
    spread_out,
    unit_of,
)
from training.finetuning.segmentation.trainee import AdaptedSegmenter, SegmentationTrainee
from training.finetuning.trunk_cache import film_cache
from training.loop import Loop, LoopReport, ParameterGroup
from training.manifests.manifest import Manifest
from training.measuring.metrics import Statistic

_MOVED = AugmentStrength(
    rotate_degrees=10.0, zoom=0.2, shift=0.06, gamma=0.4, contrast=0.3, brightness=0.1, noise=0.02, erase=0.1
)


@dataclass(frozen=True)
class MaskDataRecipe(RowsRecipe):
    """masks: where they are. film_height_mm: taken for films that carry no spacing; 0 measures those in pixels.

    unions: names for several classes together, which are scored as well. context: volumes only; how many slices away
    the neighbours are that each slice is shown with, 0 for none.
    """

    masks: tuple[MaskRecipe, ...] = ()
    film_height_mm: float = 0.0
    unions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    context: int = 0


@dataclass(frozen=True)
class SegmentationViews:
    """blanks: share of films replaced by a picture that holds nothing; spoken: share of batches asked in the words of
    head.phrases.
    """

    strength: AugmentStrength = field(default_factory=lambda: _MOVED)
    blanks: float = 0.04
    spoken: float = 0.3


@dataclass(frozen=True)
class ClickRecipe:
    """How clicks and boxes are learnt, after the words: `rounds` of them on each film. epochs 0: not at all."""

    epochs: int = 8
    rounds: int = 3
    rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.rounds < 1:
            raise InvalidRequest("clicks.epochs must be 0 or more, and clicks.rounds 1 or more.", param="clicks")


@dataclass(frozen=True)
class SegmentationHeadRecipe:
    """templates: sentences whose mean embedding a class starts from. phrases: what free words mean.

    parts: how many connected parts a class has at most; 0: any number.
    """

    templates: tuple[str, ...] = ("{}", "the {}", "a film showing the {}")
    phrases: tuple[Phrase, ...] = ()
    parts: int = 0


@dataclass(frozen=True)
class SegmentationRecipe(TaskRecipe):
    task: str = TASK
    data: MaskDataRecipe = field(default_factory=MaskDataRecipe)
    head: SegmentationHeadRecipe = field(default_factory=SegmentationHeadRecipe)
    views: SegmentationViews = field(default_factory=SegmentationViews)
    clicks: ClickRecipe = field(default_factory=ClickRecipe)
    training: PaceRecipe = field(default_factory=lambda: PaceRecipe(batch_size=8, head_rate=2e-3))

    def __post_init__(self) -> None:
        if not self.data.masks:
            raise InvalidRequest("data.masks is empty: say which manifest field holds which classes.", param="masks")
        check_phrases(self.head.phrases, class_names(self.data.masks))
        odd = sorted({part for parts in self.data.unions.values() for part in parts} - set(class_names(self.data.masks)))
        if odd:
            raise InvalidRequest(f"data.unions name classes that data.masks do not hold: {', '.join(odd)}.", param="unions")
        for name in ("blanks", "spoken"):
            if not 0.0 <= getattr(self.views, name) <= 1.0:
                raise InvalidRequest(f"views.{name} must lie from 0 to 1.", param=name)


Job = FinetuneJob[SegmentationRecipe]


def segmentation_rows(rows: Manifest, recipe: SegmentationRecipe) -> Manifest:
    """The rows with a mask that the recipe knows; missing files are an error before anything is trained."""
    kept = rows.select(lambda row: has_masks(row, recipe.data.masks))
    check_masks(kept.rows, recipe.data.masks)
    return kept


def train_segmentation(job: Job) -> FinetuneResult:
    """Train, score in film geometry and write the adapter."""
    recipe, backbone = job.recipe, job.backbone
    labels = class_names(recipe.data.masks)
    films = {split: load_films(job, split) for split, count in job.rows.counts.items() if count}
    _check_classes(films, labels)
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
        scored = {split: _score(job, trainee, model, films[split], card) for split in ("val", "test") if split in films}
        lora, head = model.weights(), {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    finally:
        remove_lora(backbone.image_tower)  # the backbone is given back as it was
    base = {split: _score_mean_mask(job, films, split) for split in scored}
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


def load_films(job: Job, split: str) -> MaskedFilms:
    """The films of a split; volumes as their slices."""
    rows, contract = job.rows.of(split), job.backbone.contract
    if read_film(rows[0].image.read_bytes()).is_volume:
        return load_volumes(rows, job.recipe.data.masks, contract, job.recipe.data.context)
    pixels = film_cache([row.image for row in rows], contract, job.cache, is_quiet=job.is_quiet)
    return load_masked(rows, job.recipe.data.masks, pixels, contract)


def card_metrics(split: str, ours: SegmentationScores, baseline: SegmentationScores) -> Iterator[Metric]:
    """Every measure of every class, the mean training mask's Dice beside it, and how often nothing was rightly said."""
    draws = ours.bootstrap()

    def metric(name: str, label: str, statistic: Statistic, count: int) -> Metric | None:
        one = draws.estimate(statistic)
        if not math.isfinite(one.value):
            return None
        low, high = (None if math.isnan(bound) else round(bound, 4) for bound in (one.low, one.high))
        return Metric(name, label, split, round(one.value, 4), low, high, one.level, count, len(ours.patients))

    for label in ours.labels:
        names = [(f"{measure} ({ours.unit})" if measure in DISTANCES else measure, measure) for measure in MEASURES]
        made = [metric(name, label, ours.statistic(measure, label), ours.count(label)) for name, measure in names]
        made.append(metric("mean mask dice", label, baseline.statistic("dice", label), ours.count(label)))
        made.append(metric("nothing there, nothing drawn", label, ours.empty_statistic(label), 0))
        yield from (one for one in made if one is not None)


def _score(
    job: Job, trainee: SegmentationTrainee, model: AdaptedSegmenter, films: MaskedFilms, card: AdapterCard
) -> SegmentationScores:
    contract, data = job.backbone.contract, job.recipe.data
    segmenter = Segmenter(card, model.head, data.unions, job.recipe.head.parts, data.context)
    labels, rows = (*card.labels, *data.unions), tuple(dict.fromkeys(films.rows))
    answers = zip(*trainee.predict(model, films), strict=True) if len(rows) == len(films.rows) else None  # None: volumes

    def draw(film: MedicalImage) -> SegmentationResult | VolumeSegmentation:
        if answers is None:
            return segment_volume(segmenter, lambda pixels: model.features({"pixels": pixels}), film, contract)
        return segmenter.result(*next(answers), (film.pixels.shape[1], film.pixels.shape[2]), contract)

    def pairs() -> Iterator[tuple[dict[str, Mask], dict[str, Mask], Ruler]]:
        for row in rows:
            film, truth = read_masked(row, data.masks)
            result = draw(film)
            found = {label: result.mask(label) for label in labels}
            yield found, with_unions(truth, data.unions), ruler_of(film, data.film_height_mm)

    return score_masks(labels, [row.patient_id for row in rows], pairs(), unit_of(data.film_height_mm))


def _score_mean_mask(job: Job, films: Mapping[str, MaskedFilms], split: str) -> SegmentationScores:
    data, contract = job.recipe.data, job.backbone.contract
    labels, draw = class_names(data.masks), mean_mask(films["train"], films["val"])
    rows = tuple(dict.fromkeys(films[split].rows))

    def pairs() -> Iterator[tuple[dict[str, Mask], dict[str, Mask], Ruler]]:
        for row in rows:
            film, truth = read_masked(row, data.masks)
            drawn = [spread_out(mask, film) for mask in draw(film.pixels.shape[1], film.pixels.shape[2], contract)]
            found = with_unions(dict(zip(labels, drawn, strict=True)), data.unions)
            yield found, with_unions(truth, data.unions), ruler_of(film, data.film_height_mm)

    patients = [row.patient_id for row in rows]
    return score_masks((*labels, *data.unions), patients, pairs(), unit_of(data.film_height_mm))


def _check_classes(films: Mapping[str, MaskedFilms], labels: Sequence[str]) -> None:
    for split in ("train", "val"):
        if split not in films:
            raise ManifestError(f"No row of split {split!r} has a mask; set `split` on some patients.", param="split")
        empty = [repr(label) for k, label in enumerate(labels) if not (films[split].masks[:, k] >= 128).any()]
        if empty:
            raise InvalidRequest(f"No {split} mask holds {', '.join(empty)}; correct data.masks or drop it.", param="masks")
