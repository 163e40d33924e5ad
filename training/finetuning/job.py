"""What every fine-tuning task shares: the job it is given, the result it hands back, what a card says of the data.

`finetune.py` holds the table of tasks and makes the job; each task's own file does it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from adapters.card import AdapterCard, BaseRecord, DataRecord, read_card
from adapters.files import Adapter, write_adapter
from adapters.half import round_to_half
from adapters.tasks.classification import EncodesText
from foundation.preprocess import InputContract
from foundation.towers.tower import ImageTower
from training.finetuning.recipe import TaskRecipe
from training.loop import Loop, LoopReport, ParameterGroup, Trainee
from training.loop_config import LoopConfig
from training.manifests.manifest import Manifest, Row
from training.processes import is_main, main_first

NON_COMMERCIAL = "nc"
Recipe = TypeVar("Recipe", bound=TaskRecipe)


class TrainableBackbone(EncodesText, Protocol):
    """What fine-tuning needs of a backbone."""

    image_tower: ImageTower
    contract: InputContract
    embed_dim: int
    width: int
    fingerprint: str

    def lora_targets(self) -> list[str]: ...


@dataclass(frozen=True, eq=False)
class FinetuneJob(Generic[Recipe]):
    """One run: the rows that recipe and caller ask for, the open backbone, and where things go."""

    recipe: Recipe
    rows: Manifest
    backbone: TrainableBackbone
    base: str
    cache: Path
    out: Path
    resume: bool = False
    is_quiet: bool = False
    cpu: bool = False
    folder: Path | None = None  # the checkpoint's, where a decoder may lie

    def loop_config(self, monitor: str = "auroc") -> LoopConfig:
        training = self.recipe.training
        return LoopConfig(
            epochs=training.epochs,
            monitor=monitor,
            patience=training.patience,
            accumulate=training.accumulate,
            precision=training.precision,
            warmup=training.warmup,
            weight_decay=training.weight_decay,
            average=training.average,
            seed=self.recipe.seed,
            cpu=self.cpu,
        )

    def train(self, trainee: Trainee, model: nn.Module, groups: Sequence[ParameterGroup], config: LoopConfig) -> LoopReport:
        """Run the loop in OUT/loop, on from where it was stopped if the job resumes; the best weights stay in the model."""
        loop = Loop(trainee, model, groups, config, self.out / "loop", is_quiet=self.is_quiet)
        return loop.run(resume=self.resume)

    def settle(self, learnt: Iterable[Tensor]) -> None:
        """Round what was learnt as the recipe stores it: what is scored from here on is what will be served."""
        if self.recipe.training.storage == "float16":
            round_to_half(learnt)

    def write(self, adapter: Adapter) -> AdapterCard:
        """Write the adapter into OUT/NAME, one process for all of them; the card with the files' hashes."""
        folder = self.out / self.recipe.name
        with main_first():
            return write_adapter(folder, adapter) if is_main() else read_card(folder)

    def card(
        self,
        labels: Sequence[str],
        rows: Sequence[Row],
        licence_of: Callable[[Row], str] | None = None,
        **fields: Any,
    ) -> AdapterCard:
        """The card of the finished adapter; `rows` are those learnt from, `fields` what only the task knows."""
        words = self.recipe.card
        data = data_records(rows, licence_of or (lambda row: row.licence_class))
        return AdapterCard(
            name=self.recipe.name,
            task=self.recipe.task,
            labels=tuple(labels),
            base=BaseRecord(self.base, self.backbone.fingerprint),
            preprocessing_version=self.backbone.contract.version,
            description=words.description,
            licence=words.licence,
            data=data,
            citations=words.citations,
            limits=(*words.limits, *licence_limits(data)),
            recipe=asdict(self.recipe),
            **fields,
        )


@dataclass(frozen=True)
class FinetuneResult:
    """Where the adapter lies and how it came to be; `scores` holds the main `measure` by split."""

    adapter: Path
    card: AdapterCard
    loop: LoopReport
    scores: Mapping[str, float]
    measure: str = "auroc"


def licence_limits(data: Sequence[DataRecord]) -> tuple[str, ...]:
    """The sentence a card must carry where anything was learnt from under non-commercial terms."""
    sources = sorted({record.source for record in data if record.licence_class == NON_COMMERCIAL})
    if not sources:
        return ()
    return (f"Non-commercial research only: films or masks of {', '.join(sources)} are under non-commercial terms.",)


def data_records(rows: Sequence[Row], licence_of: Callable[[Row], str]) -> tuple[DataRecord, ...]:
    """What was learnt from, by source and licence."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(row.get("source", "")), row.licence, licence_of(row)].append(row)
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
