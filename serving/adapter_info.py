"""An adapter as callers see it, told from its card alone: what it can do, where its limits are, what it wants to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.card import AdapterCard
from adapters.store import StoredAdapter
from adapters.tasks.tabular import read_fields
from foundation.errors import AdapterRefused
from serving.gateway import ModelInfo
from serving.messages import Operation

OPERATIONS: Mapping[str, tuple[Operation, ...]] = {
    "classification": ("classify",),
    "segmentation": ("segment",),
    "anomaly": ("anomaly",),
    "fusion": ("fuse",),
    "chat": ("chat",),
}


def adapter_info(stored: StoredAdapter, base: str) -> ModelInfo:
    """base: the name of the model it belongs to."""
    card = stored.card
    return ModelInfo(
        name=stored.name,
        kind="adapter",
        capabilities=OPERATIONS.get(card.task, ()),
        base=base,
        task=card.task,
        labels=card.labels,
        digest=stored.digest,
        description=card.description,
        licence=card.licence,
        created=stored.created,
        limits=card.limits,
        **_of_the_head(card),
    )


def _of_the_head(card: AdapterCard) -> dict[str, Any]:
    """What only some tasks have. A head that is not described as this version does is refused once it is opened, not here."""
    try:
        return {
            "unions": {str(name): tuple(map(str, parts)) for name, parts in dict(card.head.get("unions", {})).items()},
            "modalities": tuple(map(str, card.head.get("modalities", ()))),
            "fields": read_fields(card),
        }
    except (AdapterRefused, TypeError, ValueError):
        return {}
