"""Phrases mean unions of classes or nothing; sides and unions of masks are the patient's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters.fake import FakeBackbone
from foundation.errors import InvalidRequest
from training.finetuning.segmentation.masks import MaskRecipe, split_sides, with_unions
from training.finetuning.segmentation.phrases import Phrase, SpokenPhrases, check_phrases

CLASSES = ("right lung", "left lung")
BOTH = Phrase(("lungs", "both lungs", "the lungs", "pair of lungs", "lung fields"), CLASSES)
RIGHT = Phrase(("right lung", "the right lung"), ("right lung",))
NOTHING = Phrase(("liver", "a car"))


def test_every_fourth_wording_is_kept_for_the_report() -> None:
    assert BOTH.held == ("pair of lungs",)
    assert set(BOTH.taught) | set(BOTH.held) == set(BOTH.words)
    assert RIGHT.held == ()


def test_a_question_means_its_classes_together() -> None:
    spoken = SpokenPhrases(FakeBackbone(), (BOTH, RIGHT, NOTHING), CLASSES)
    target = torch.zeros(2, 2, 4, 4)
    target[:, 0, :2], target[:, 1, 2:] = 1.0, 1.0
    known = torch.tensor([[True, True], [True, False]])
    both, right, nothing = 0, 0, 0
    for seed in range(20):
        asked = spoken.draw(target, known, np.random.default_rng(seed))
        assert asked["phrases"].shape == (3, 16)
        for place in range(3):
            share = float(asked["target"][0, place].mean())
            both += share == 1.0 and asked["known"][:, place].tolist() == [True, False]
            right += share == 0.5 and bool(asked["known"][:, place].all())
            nothing += share == 0.0 and bool(asked["known"][:, place].all())
    assert (both, right, nothing) == (20, 20, 20)


def test_odd_phrases_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="do not hold: heart"):
        check_phrases((Phrase(("heart",), ("heart",)),), CLASSES)
    with pytest.raises(InvalidRequest, match="at least one wording"):
        check_phrases((Phrase(),), CLASSES)


def test_sides_are_the_patients() -> None:
    mask = np.zeros((20, 40), bool)
    mask[4:16, 4:16] = mask[4:16, 24:36] = mask[18:20, 2:4] = True  # on the viewer's left, and an island there
    right, left = split_sides(mask)
    assert right[:, :20].sum() == right.sum() == 148
    assert left[:, 20:].sum() == left.sum() == 144
    assert not (right & left).any()
    one, none = split_sides(np.pad(np.ones((4, 4), bool), ((0, 0), (0, 12))))  # a single lung, on the viewer's left
    assert one.sum() == 16
    assert not none.any()
    assert not any(part.any() for part in split_sides(np.zeros((4, 4), bool)))
    assert MaskRecipe("m", classes={"lung": []}, sides=True).names == ("right lung", "left lung")


def test_unions_need_all_their_parts() -> None:
    masks = {"a": np.array([True, False]), "b": np.array([False, True])}
    made = with_unions(masks, {"ab": ("a", "b"), "ac": ("a", "c")})
    assert set(made) == {"a", "b", "ab"}
    assert made["ab"].all()
