"""Which file opens which task: from a card and the head's tensors to something that answers about a film.

Adding a task is adding its file beside this one and a line below. Chat is not here: it adapts the decoder (`chat.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor, nn

from adapters.card import AdapterCard
from adapters.tasks import anomaly, classification, fusion, segmentation
from foundation.errors import AdapterRefused


class Opened(Protocol):
    """A card and its head; what it is called with is the task's own matter."""

    @property
    def card(self) -> AdapterCard: ...

    @property
    def head(self) -> nn.Module: ...


OPENERS: Mapping[str, Callable[[AdapterCard, Mapping[str, Tensor]], Opened]] = {
    classification.TASK: classification.Classifier.open,
    segmentation.TASK: segmentation.Segmenter.open,
    anomaly.TASK: anomaly.Detector.open,
    fusion.TASK: fusion.FusionPredictor.open,
}


def open_task(card: AdapterCard, tensors: Mapping[str, Tensor]) -> Opened:
    """Bind the head of whatever task the card names. Raises AdapterRefused."""
    opener = OPENERS.get(card.task)
    if opener is None:
        raise AdapterRefused(
            f"The adapter {card.name!r} is for {card.task!r}, which is not known here: {', '.join(OPENERS)} are."
        )
    return opener(card, tensors)
