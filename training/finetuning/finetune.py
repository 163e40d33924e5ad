"""Fine-tuning: from a manifest to an adapter folder with an honest card.

    manifest -> rows -> FinetuneJob -> the task's own file -> OUT/NAME/   the adapter
                                                           -> OUT/report.json, .md

Validation picks the epoch; `test`, where the manifest has one, is scored once at the end, with patient-level intervals.
What is trained stands in each task's file, how in `loop.py`, every option in the task's recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.card import check_name
from adapters.tasks import anomaly, chat, classification, fusion, segmentation
from foundation.errors import InvalidRequest, ManifestError
from training import processes
from training.finetuning.anomaly.finetune import AnomalyRecipe, anomaly_rows, train_anomaly
from training.finetuning.chat.finetune import ChatRecipe, chat_rows, train_chat
from training.finetuning.classification.finetune import classification_rows, train_classification
from training.finetuning.fusion.finetune import fusion_rows, train_fusion
from training.finetuning.fusion.recipe import FusionRecipe
from training.finetuning.job import FinetuneJob, FinetuneResult, TrainableBackbone
from training.finetuning.recipe import FinetuneRecipe, TaskRecipe
from training.finetuning.segmentation.films import segmentation_rows
from training.finetuning.segmentation.finetune import train_segmentation
from training.finetuning.segmentation.recipe import SegmentationRecipe
from training.manifests.manifest import Manifest, filter_rows, load_manifest
from training.recipe import read_recipe


@dataclass(frozen=True)
class Trainer:
    """How a task is trained. recipe: its dataclass; default: the recipe used where none is named.

    usable: the rows that say something about the task; train: does the job and writes the adapter.
    """

    recipe: type[Any]
    default: str
    usable: Callable[[Manifest, Any], Manifest]
    train: Callable[[Any], FinetuneResult]


TASKS: Mapping[str, Trainer] = {
    classification.TASK: Trainer(FinetuneRecipe, "cxr-findings", classification_rows, train_classification),
    segmentation.TASK: Trainer(SegmentationRecipe, "lungs", segmentation_rows, train_segmentation),
    anomaly.TASK: Trainer(AnomalyRecipe, "cxr-anomaly", anomaly_rows, train_anomaly),
    chat.TASK: Trainer(ChatRecipe, "cxr-questions", chat_rows, train_chat),
    fusion.TASK: Trainer(FusionRecipe, "covid-course", fusion_rows, train_fusion),
}


def finetune(
    task: str,
    manifest: Path | str,
    out: Path | str,
    recipe: TaskRecipe | str | None = None,
    checkpoint: str | TrainableBackbone = "bundled",
    *,
    where: str | Sequence[str] = (),
    cache: Path | str | None = None,
    resume: bool = False,
    is_quiet: bool = False,
    cpu: bool = False,
) -> FinetuneResult:
    """Train, score and write one adapter into OUT/NAME.

    recipe: a value, a name under `recipes/` or a TOML file; None: the task's default. where: clauses added to the
    recipe's. cache: the folder for films and features (default OUT/cache). resume: go on with the run that OUT holds.
    """
    out = Path(out)
    processes.join(cpu)
    if task not in TASKS:
        raise InvalidRequest(f"The task {task!r} cannot be trained; choose one of {', '.join(TASKS)}.", param="task")
    trainer = TASKS[task]
    chosen = trainer.default if recipe is None else recipe
    asked = read_recipe(chosen, trainer.recipe) if isinstance(chosen, str) else chosen
    _check(task, trainer, asked, out)
    rows = trainer.usable(select_rows(load_manifest(manifest, columns=asked.data.columns), asked, where), asked)
    if not rows.rows:
        raise ManifestError(f"No row that says anything for {task} is left by the recipe's filters; loosen them.")
    backbone, base, opened = _open(checkpoint)
    folder = Path(cache) if cache else out / "cache"
    return trainer.train(FinetuneJob(asked, rows, backbone, base, folder, out, resume, is_quiet, cpu, opened))


def select_rows(manifest: Manifest, recipe: TaskRecipe, where: str | Sequence[str] = ()) -> Manifest:
    """The rows that recipe and caller ask for, of the licence classes the recipe allows."""
    clauses = (*recipe.data.where, *((where,) if isinstance(where, str) else where))
    kept = filter_rows(manifest, clauses) if clauses else manifest
    allowed = recipe.data.licence_classes
    return kept.select(lambda row: not allowed or row.licence_class in allowed)


def _check(task: str, trainer: Trainer, recipe: TaskRecipe, out: Path) -> None:
    if not isinstance(recipe, trainer.recipe) or recipe.task != task:
        raise InvalidRequest(f"The recipe {recipe.name!r} is for {recipe.task}, not for {task}.", param="recipe")
    check_name(recipe.name)
    if (out / recipe.name).exists():
        raise InvalidRequest(
            f"The folder {out.name!r} already holds {recipe.name!r}; remove it or choose another folder.", param="out"
        )


def _open(checkpoint: str | TrainableBackbone) -> tuple[TrainableBackbone, str, Path | None]:
    """The backbone, what the card calls it, and the folder it was opened from."""
    if not isinstance(checkpoint, str):
        return checkpoint, type(checkpoint).__name__, None
    from foundation.checkpoint import open_checkpoint

    is_folder = Path(checkpoint).is_dir()
    opened = open_checkpoint(checkpoint)
    return opened.backbone, Path(checkpoint).resolve().name if is_folder else checkpoint, opened.folder
