"""Job: one evaluation under way, and the Options that say how it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

from foundation.checkpoint import Checkpoint
from foundation.errors import InvalidRequest
from training.manifests.manifest import Manifest, Row
from training.measuring.baselines import TITLES
from training.measuring.metrics import PatientBootstrap
from training.measuring.scoring import Backbone, Running

UNET = "unet"  # the baseline of masks
Log: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to evaluate. `baselines`: "hog", "cnn", for masks "unet"; `min_count`: films a label needs with and without it."""

    baselines: tuple[str, ...] = ()
    baseline_cache: str = "runs/baselines"
    baseline_time_limit_s: float | None = None
    phantoms: int = 500
    chat_films: int = 50
    chat_phantoms: int = 100
    resamples: int = 1000
    min_count: int = 10
    seed: int = 0
    batch_size: int = 32
    use_bfloat16: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in (*TITLES, UNET):
                raise InvalidRequest(f"unknown baseline {name!r}: known are {', '.join((*TITLES, UNET))}", param="baselines")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value < (1 if item.name in ("resamples", "min_count", "batch_size") else 0):
                raise InvalidRequest(f"{item.name} is {value}: give a larger number", param=item.name)

    @property
    def running(self) -> Running:
        return Running(self.batch_size, self.device, self.use_bfloat16)


@dataclass(frozen=True, eq=False)
class Job:
    """What one evaluation has open: the checkpoint, the rows, the options."""

    checkpoint: Checkpoint
    manifest: Manifest | None
    split: str
    options: Options
    log: Log

    @property
    def backbone(self) -> Backbone:
        return self.checkpoint.backbone

    @property
    def rows(self) -> tuple[Row, ...]:
        return () if self.manifest is None else self.manifest.of(self.split)

    def draws(self, rows: Sequence[Row]) -> PatientBootstrap:
        return PatientBootstrap([row.patient_id for row in rows], self.options.resamples, self.options.seed)
