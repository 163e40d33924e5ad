"""A classification adapter run over films as serving runs it: each film through its slot, and by the base in further looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from adapters.bank import AdapterBank
from adapters.files import Adapter
from adapters.tasks.classification import ClassificationResult, Classifier
from training.measuring.scoring import Backbone, Film, Running, Scored, batches


@torch.inference_mode()
def classified(backbone: Backbone, adapter: Adapter, films: Iterable[Film], running: Running) -> Iterator[ClassificationResult]:
    """One result a film, in order. The backbone is given back as it was once all are read."""
    classifier = Classifier.open(adapter.card, adapter.head)
    classifier.head.to(running.device)
    bank = AdapterBank(backbone)
    try:
        slot = bank.install(adapter.lora)
        for pixels in batches(backbone, films, running):
            count = len(pixels)
            with running.autocast():
                with bank.rows([0] * count):
                    further = [backbone.encode_image(look.of(pixels)) for look in classifier.head.looks]
                with bank.rows([slot] * count):
                    features = backbone.encode_image(pixels)
            yield from classifier(features, further)
    finally:
        bank.close()


def classify(backbone: Backbone, adapter: Adapter, films: Iterable[Film], running: Running) -> Scored:
    """The adapter's calibrated probabilities; `normal` as the task derives it."""
    results = list(classified(backbone, adapter, films, running))
    table = np.stack([result.probabilities for result in results])
    scores = {label: table[:, k] for k, label in enumerate(adapter.card.labels)}
    if adapter.card.is_multi_label:
        scores.setdefault("normal", np.array([result.normal_probability for result in results], dtype=np.float64))
    thresholds = dict(zip(adapter.card.labels, results[0].thresholds.tolist(), strict=True)) if results else {}
    return Scored(adapter.card.name, scores, is_probability=True, thresholds=thresholds)
