"""Fine-tuning: from labelled films to an adapter folder with an honest card.

    manifest -> rows -> film cache -> trunk cache -> Loop -> best epoch -> calibration -> OUT/NAME/   the adapter
                                                                        -> scores      -> OUT/report.json, .md

Validation AUROC picks the epoch and the same split calibrates; `test`, where the manifest has one, is scored once at
the end, with patient-level intervals and beside the same backbone's zero-shot answers. What is trained stands in
`classification.py`, how in `loop.py`, every option in `finetune_recipe.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.card import AdapterCard, BaseRecord, Calibration, DataRecord, check_name
from adapters.files import Adapter, write_adapter
from adapters.lora import LoraWeights, read_weights, remove_lora
from adapters.tasks.classification import NORMAL, TASK, calibrate
from foundation.errors import InvalidRequest, ManifestError
from training.calibrate import fit_platt, fit_temperature, fit_thresholds
from training.classification import AdaptedClassifier, ClassificationTrainee, Films, TrainableBackbone
from training.finetune_recipe import FinetuneRecipe
from training.finetune_report import Scored, write_report
from training.loop import Loop, LoopConfig, LoopReport
from training.manifest import Manifest, Row, filter_rows, load_manifest
from training.recipe import read_recipe
from training.trunk_cache import film_cache

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FinetuneResult:
    """Where the adapter lies and how it came to be; `auroc` holds the mean over the labels by split."""

    adapter: Path
    card: AdapterCard
    loop: LoopReport
    auroc: Mapping[str, float]


def finetune(
    task: str,
    manifest: Path | str,
    out: Path | str,
    recipe: FinetuneRecipe | str,
    checkpoint: str | TrainableBackbone = "bundled",
    *,
    where: str | Sequence[str] = (),
    cache: Path | str | None = None,
    resume: bool = False,
    is_quiet: bool = False,
    cpu: bool = False,
) -> FinetuneResult:
    """Train, calibrate, score and write one adapter into OUT/NAME.

    recipe: a value, a name under `recipes/` or a TOML file. where: clauses added to the recipe's. cache: the folder for
    films and features (default OUT/cache). resume: go on with the run that OUT holds.
    """
    out = Path(out)
    recipe = read_recipe(recipe, FinetuneRecipe) if isinstance(recipe, str) else recipe
    _check(task, recipe, out)
    rows = select_rows(load_manifest(manifest), recipe, where)
    labels = choose_labels(rows, recipe)
    backbone, base = _open(checkpoint)
    folder = Path(cache) if cache else out / "cache"
    films = {
        split: _films(rows.of(split), labels, recipe, backbone, folder, is_quiet)
        for split, count in rows.counts.items()
        if count
    }
    trained = _train(backbone, recipe, labels, films, folder, out, resume=resume, is_quiet=is_quiet, cpu=cpu)
    calibration, thresholds = _calibrate(trained.logits["val"], films["val"].truth, recipe.data.multi_label)
    is_multi_label = recipe.data.multi_label
    scored = [
        Scored(split, labels, films[split].truth, logits, trained.zero_shot[split], films[split].patients, is_multi_label)
        for split, logits in trained.logits.items()
    ]
    card = AdapterCard(
        name=recipe.name,
        task=TASK,
        labels=labels,
        base=BaseRecord(base, backbone.fingerprint),
        preprocessing_version=backbone.contract.version,
        description=recipe.card.description,
        licence=recipe.card.licence,
        is_multi_label=is_multi_label,
        head={"embed_dim": backbone.embed_dim, "width": backbone.width},
        calibration=calibration,
        thresholds=thresholds,
        metrics=tuple(metric for each in scored for metric in each.metrics(calibration)),
        data=_data_records([*films["train"].rows, *films["val"].rows]),
        citations=recipe.card.citations,
        limits=recipe.card.limits,
        recipe=asdict(recipe),
    )
    card = write_adapter(out / recipe.name, Adapter(card, trained.lora, trained.head))
    write_report(out, card, trained.report, {split: len(each.rows) for split, each in films.items()})
    return FinetuneResult(out / recipe.name, card, trained.report, {each.split: each.mean_auroc() for each in scored})


def select_rows(manifest: Manifest, recipe: FinetuneRecipe, where: str | Sequence[str] = ()) -> Manifest:
    """The labelled rows that recipe and caller ask for, of the licence classes the recipe allows."""
    clauses = (*recipe.data.where, *((where,) if isinstance(where, str) else where))
    kept = filter_rows(manifest, clauses) if clauses else manifest
    allowed = recipe.data.licence_classes
    kept = kept.select(lambda row: row.is_labelled and (not allowed or row.licence_class in allowed))
    if not kept.rows:
        raise ManifestError("No labelled row is left by the recipe's filters and licence classes; loosen them.")
    return kept


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


def _train(
    backbone: TrainableBackbone,
    recipe: FinetuneRecipe,
    labels: Sequence[str],
    films: Mapping[str, Films],
    cache: Path,
    out: Path,
    *,
    resume: bool,
    is_quiet: bool,
    cpu: bool,
) -> _Trained:
    trainee = ClassificationTrainee(backbone, recipe, films, cache, is_quiet=is_quiet)
    scored = [split for split in ("val", "test") if split in films]
    torch.manual_seed(recipe.seed)
    model = AdaptedClassifier(backbone, recipe, labels)
    try:
        zero_shot = {split: trainee.logits(model, films[split]) for split in scored}
        groups = model.groups(recipe.training)
        loop = Loop(trainee, model, groups, _loop_config(recipe, cpu), out / "loop", is_quiet=is_quiet)
        report = loop.run(resume=resume)
        logits = {split: trainee.logits(model, films[split]) for split in scored}
        return _Trained(read_weights(model.tower, model.spec), model.head.state_dict(), report, logits, zero_shot)
    finally:
        remove_lora(backbone.image_tower)  # the backbone is given back as it was


def _check(task: str, recipe: FinetuneRecipe, out: Path) -> None:
    for asked in (task, recipe.task):
        if asked != TASK:
            raise InvalidRequest(f"The task {asked!r} cannot be trained; use {TASK!r}.", param="task")
    check_name(recipe.name)
    if (out / recipe.name).exists():
        raise InvalidRequest(
            f"The folder {out.name!r} already holds {recipe.name!r}; remove it or choose another folder.", param="out"
        )


def _open(checkpoint: str | TrainableBackbone) -> tuple[TrainableBackbone, str]:
    if not isinstance(checkpoint, str):
        return checkpoint, type(checkpoint).__name__
    from foundation.checkpoint import open_checkpoint

    is_folder = Path(checkpoint).is_dir()
    return open_checkpoint(checkpoint).backbone, Path(checkpoint).resolve().name if is_folder else checkpoint


def _films(
    rows: Sequence[Row],
    labels: Sequence[str],
    recipe: FinetuneRecipe,
    backbone: TrainableBackbone,
    cache: Path,
    is_quiet: bool,
) -> Films:
    truth = np.array([[label in row.labels for label in labels] for row in rows], dtype=np.float32)
    if not recipe.data.multi_label and (truth.sum(axis=1) != 1).any():
        number = rows[int(np.flatnonzero(truth.sum(axis=1) != 1)[0])].number
        raise ManifestError(
            f"Row {number} has not exactly one of the labels {', '.join(labels)}; filter it out or set multi_label = true."
        )
    pixels = film_cache([row.image for row in rows], backbone.contract, cache, is_quiet=is_quiet)
    return Films(tuple(rows), pixels, truth)


def _loop_config(recipe: FinetuneRecipe, cpu: bool) -> LoopConfig:
    training = recipe.training
    return LoopConfig(
        epochs=training.epochs,
        patience=training.patience,
        accumulate=training.accumulate,
        precision=training.precision,
        warmup=training.warmup,
        weight_decay=training.weight_decay,
        seed=recipe.seed,
        cpu=cpu,
    )


def _calibrate(logits: Floats, truth: npt.NDArray[np.float32], is_multi_label: bool) -> tuple[Calibration, tuple[float, ...]]:
    if not is_multi_label:
        return fit_temperature(logits, truth.argmax(axis=1), "val"), ()
    calibration = fit_platt(logits, truth.astype(np.float64), "val")
    return calibration, fit_thresholds(calibrate(logits, calibration, True), truth.astype(np.float64))


def _data_records(rows: Sequence[Row]) -> tuple[DataRecord, ...]:
    """What was learnt from, by source and licence."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(row.get("source", "")), row.licence, row.licence_class].append(row)
    return tuple(
        DataRecord(
            source=source,
            films=len(group),
            patients=len({row.patient_id for row in group}),
            splits=tuple(sorted({row.split for row in group})),
            licence=licence,
            licence_class=licence_class,
        )
        for (source, licence, licence_class), group in sorted(groups.items())
    )
