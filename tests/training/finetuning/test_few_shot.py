"""Few shots: as many patients as can be, the blend turns words by prototypes, three seeds are reported beside zero-shot."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from training.finetuning.classification.few_shot import blend_prototypes, draw_shots

NAN = float("nan")


def test_shots_are_of_different_patients_and_of_every_label() -> None:
    truth = np.array([[1, 0]] * 6 + [[0, 1]] * 3 + [[0, 0]] * 5 + [[NAN, NAN]] * 4, np.float32)
    patients = ["a", "a", "a", "a", "b", "c"] + [f"p{n}" for n in range(12)]
    chosen = draw_shots(truth, patients, 3, seed=1)
    assert {patients[place] for place in chosen if truth[place, 0] == 1} == {"a", "b", "c"}
    assert (truth[chosen].sum(axis=0) == 3).all()
    assert len(chosen) == 9  # three of each label and three of none; the unknown are of none of these
    assert not np.array_equal(chosen, draw_shots(truth, patients, 3, seed=2))
    assert len(draw_shots(truth, patients, 100, seed=1)) == 14


def test_the_blend_moves_words_towards_prototypes() -> None:
    text = nn.Linear(2, 2)
    nn.init.zeros_(text.bias)
    with torch.no_grad():
        text.weight.copy_(torch.tensor([[4.0, 0.0], [3.0, 0.0]]))
    films = torch.tensor([[0.0, 1.0]] * 8 + [[0.0, -1.0]] * 8)
    truth = np.array([[1, NAN]] * 8 + [[0, NAN]] * 8, np.float32)
    blend_prototypes(text, films, truth)
    torch.testing.assert_close(text.weight, torch.tensor([[4.0, 2.0], [3.0, 0.0]]))  # eight shots: half; nothing known: kept
    torch.testing.assert_close(text.bias, torch.zeros(2))
