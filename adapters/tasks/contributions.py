"""What each number of the table moved a fusion's logit, against the same patient with the training rows' medians.

Integrated gradients (`foundation/tabular_relevance.py`, captum) through whichever of the head's members answers for what is
present. They add up to the logit less the one with every number at its median, which the account's Shapley values, by modality,
do not tell. Words, values beyond detection and missing fields have no path to go along and are not listed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters.tasks.tabular import NUMBER, VALUE
from foundation.tabular_relevance import tabular_relevance

if TYPE_CHECKING:
    from adapters.tasks.fusion import FusionPredictor
    from adapters.tasks.fusion_head import FusionInputs


def contributions(predictor: FusionPredictor, inputs: FusionInputs) -> dict[str, float]:
    """inputs: of one patient -> by field, in logits.

    Raises InvalidRequest where captum is not installed, ArithmeticError where they do not add up.
    """
    places = [
        place for place, field in enumerate(predictor.fields) if field.kind == NUMBER and int(inputs.states[0, place]) == VALUE
    ]
    if not places:
        return {}
    with torch.inference_mode(False):  # NOTE: what was made under inference mode cannot take part in gradients
        own = type(inputs)(**{name: getattr(inputs, name).clone() for name in inputs.__dataclass_fields__})

        def score(numbers: Tensor) -> Tensor:
            """(B, 2 * places) -> (B,) logits."""
            every = own.take(torch.zeros(len(numbers), dtype=torch.long, device=numbers.device))
            given = every.numbers.clone()
            given[:, places] = numbers.reshape(len(numbers), len(places), 2)
            return predictor.logits(replace(every, numbers=given))

        values = own.numbers[0, places].flatten()
        found = tabular_relevance(score, values, torch.zeros_like(values)).reshape(len(places), 2).sum(dim=1)
    return {predictor.fields[place].name: float(value) for place, value in zip(places, found, strict=True)}
