"""Asked: what the sections of a report on an adapter look at, whatever its task. Tasks add what only they need."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.files import Adapter
from training.manifests.manifest import Manifest
from training.measuring.scoring import Backbone, Running


@dataclass(frozen=True, eq=False)
class Asked:
    """An adapter, open on its backbone, and the split of a manifest it is measured on. resamples, seed: of the intervals."""

    backbone: Backbone
    adapter: Adapter
    manifest: Manifest
    split: str
    running: Running
    resamples: int
    seed: int
