"""Contributions of a table's numbers: exact for a linear score, adding up for any, none for what is missing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foundation.tabular_relevance import tabular_relevance

pytest.importorskip("captum")
WEIGHTS = torch.tensor([2.0, -1.0, 0.5, 0.0])


def linear(x: Tensor) -> Tensor:
    return x @ WEIGHTS


def curved(x: Tensor) -> Tensor:
    return torch.sigmoid(linear(x)) + x[:, 0] * x[:, 1]


def test_a_linear_score_is_shared_out_by_its_weights() -> None:
    values, baseline = torch.tensor([1.0, 3.0, -2.0, 9.0]), torch.tensor([0.0, 1.0, 0.0, 0.0])
    found = tabular_relevance(linear, values, baseline)
    torch.testing.assert_close(found, WEIGHTS * (values - baseline), atol=1e-4, rtol=1e-4)


def test_contributions_add_up_within_inference_mode_too() -> None:
    values, baseline = torch.tensor([1.0, -0.5, 2.0, 1.0]), torch.zeros(4)
    with torch.inference_mode():
        found = tabular_relevance(curved, values, baseline)
    assert float(found.sum()) == pytest.approx(float(curved(values[None]) - curved(baseline[None])), rel=1e-2)
    assert found[3] == 0.0


def test_what_is_missing_contributes_nothing() -> None:
    found = tabular_relevance(curved, torch.tensor([1.0, float("nan"), 2.0, 1.0]), torch.full((4,), 0.3))
    assert found[1] == 0.0
    assert torch.isfinite(found).all()


def test_what_does_not_add_up_is_an_error() -> None:
    def cliff(x: Tensor) -> Tensor:
        return (x[:, 0] > 0.7).float() + 0.0 * x.sum(1)  # its gradient sees nothing of the step

    with pytest.raises(ArithmeticError, match="add up"):
        tabular_relevance(cliff, torch.ones(4), torch.zeros(4))
