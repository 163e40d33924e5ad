"""What each number of a table contributed to a score: integrated gradients (Sundararajan 2017), through captum.

The contributions add up to the score less the score of the baseline, which `tabular_relevance` checks: a sum that does not
add up is an error, never an answer. Values that are missing (NaN) take the baseline's and contribute nothing. Needs the extra
`explain`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foundation.errors import InvalidRequest

STEPS = 64
TOLERANCE = 0.02  # of the largest contribution, in what the sum may miss


def tabular_relevance(score: Callable[[Tensor], Tensor], values: Tensor, baseline: Tensor, steps: int = STEPS) -> Tensor:
    """score: (B, F) -> (B,), differentiable; values, baseline (F,) -> (F,) contributions.

    Raises InvalidRequest where captum is not installed, ArithmeticError where the contributions do not add up.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise InvalidRequest("Contributions of a table need the extra 'explain': pip install 'vesalius[explain]'.") from None
    start = baseline.detach().float()
    end = torch.where(torch.isnan(values), start, values.detach().float())
    with torch.inference_mode(False), torch.enable_grad():
        attributed = IntegratedGradients(score).attribute(end.clone()[None], start.clone()[None], n_steps=steps)
    found: Tensor = attributed[0].detach()
    with torch.no_grad():
        owed = float(score(end[None])[0] - score(start[None])[0])
    if abs(float(found.sum()) - owed) > TOLERANCE * max(1e-6, float(found.abs().max()), abs(owed)):
        raise ArithmeticError("the contributions do not add up to the score")
    return found
