"""An adapter, measured by what its task is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adapters.card import read_card
from adapters.files import Adapter, read_adapter
from adapters.store import AdapterStore
from adapters.tasks import anomaly, classification, fusion, segmentation
from adapters.tasks import chat as chat_task
from foundation.errors import InvalidRequest
from training.evaluating.fusion_check import fusion_sections
from training.evaluating.job import UNET, Job
from training.evaluating.label_check import label_sections, train_baseline
from training.finetuning.anomaly.finetune import AnomalyRecipe, is_asked
from training.finetuning.anomaly.report import Anomaly, anomaly_sections
from training.finetuning.chat.finetune import open_decoder
from training.finetuning.chat.report import Questions, question_sections
from training.finetuning.segmentation.asked import Segmentation
from training.finetuning.segmentation.report import segmentation_sections
from training.measuring.asked import Asked
from training.measuring.baselines import TITLES
from training.measuring.report import Section
from training.measuring.scoring import Backbone, Scores
from training.recipe import fill


def open_adapter(
    subject: str, backbone: Backbone, store: AdapterStore | None = None, checkpoint: Path | None = None
) -> Adapter:
    """An adapter by its name in the store, or by the path of its folder. checkpoint: where a chat adapter's decoder lies."""
    folder = Path(subject)
    if not (folder / "card.json").is_file():
        folder = (store or AdapterStore.default()).get(subject).folder
    if read_card(folder).task == chat_task.TASK:
        return chat_task.open_chat_adapter(folder, backbone, open_decoder(checkpoint))
    return read_adapter(folder, backbone)


def adapter_sections(job: Job, adapter: Adapter) -> list[Section]:
    """What the adapter's task is measured by, source by source."""
    if job.manifest is None:
        raise InvalidRequest("an adapter is evaluated on labelled films: give a manifest", param="manifest")
    task, options = adapter.card.task, job.options
    if task == classification.TASK:
        return label_sections(job, adapter)
    job.log(f"running {adapter.card.name} on split {job.split!r}")
    opened = (job.backbone, adapter, job.manifest, job.split, options.running, options.resamples, options.seed)
    if task == segmentation.TASK:
        cache = Path(options.baseline_cache) if UNET in options.baselines else None
        return segmentation_sections(Segmentation(*opened, options.min_count, cache, job.log))
    if task == anomaly.TASK:
        return anomaly_sections(Anomaly(*opened, options.min_count, lambda source: _supervised(job, adapter, source)))
    if task == chat_task.TASK:
        asked = (job.checkpoint.backbone, adapter, job.manifest, job.split, job.checkpoint.folder)
        return question_sections(Questions(*asked, options.resamples, options.seed, options.min_count))
    if task == fusion.TASK:
        return fusion_sections(Asked(*opened))
    raise InvalidRequest(f"adapters for {task} are not evaluated here", param="subject")


def _supervised(job: Job, adapter: Adapter, source: str) -> dict[str, Scores]:
    """The baselines that learn "normal" as a label, on the rows that the adapter is asked about; larger is stranger."""
    assert job.manifest is not None
    recipe = fill(AnomalyRecipe, adapter.card.recipe, "the card's recipe")
    asked = replace(job, manifest=job.manifest.select(lambda row: is_asked(row, recipe)))
    normal = recipe.data.normal
    names = [name for name in job.options.baselines if name in TITLES]
    return {TITLES[name]: 1.0 - train_baseline(asked, name, source, [normal]).scores[normal] for name in names}
